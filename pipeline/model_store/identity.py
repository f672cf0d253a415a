"""How a model was fitted, and the digests of its groups, which say that as well as their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from patchlake.pipeline.config import Scalar, digest
from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.model_store.models import (
    AGAIN,
    MANIFEST,
    NOT_SCORED_WITH,
    FileRecord,
    GeometryRecord,
    Manifest,
    Network,
)
from patchlake.pipeline.storage.folder import Folder


@dataclass(frozen=True)
class Identity:
    """What the digest of each group of a model covers besides the group's arrays."""

    method: str
    method_options: Mapping[str, Scalar]
    # Their bits and the place of the weights are not covered: no score hangs on them alone.
    geometry: GeometryRecord
    network: Network
    # `IndexSettings` as JSON.
    index: Mapping[str, object]
    seed: int
    # Whether suspects were left out.
    robust: bool
    # Whether each image says what of it counts. What counts of a whole group is among its files.
    each_has_roi: bool = False
    # Group -> (height, width) of its inputs, where the geometry's `resize` is `auto`.
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest) -> "Identity":
        """Return that of a published model."""
        # As it was written: what later versions add to the settings was not there.
        index = manifest.settings.index.model_dump(mode="json", exclude_unset=True)
        return cls(
            method=manifest.method,
            method_options=manifest.method_options,
            geometry=manifest.geometry,
            network=manifest.backbone,
            index=index,
            seed=manifest.settings.seed,
            robust=manifest.settings.robust,
            each_has_roi=bool(manifest.settings.columns.roi),
            shapes=manifest.shapes,
        )

    def of_group(self, group: str) -> "Identity":
        """Return what the digest of one group covers: of shapes its own, as if it had been set."""
        shape = self.shapes.get(group)
        if shape is None:
            return self
        geometry = self.geometry.model_copy(update={"resize": shape, "pixels": None})
        return replace(self, geometry=geometry, shapes={group: shape})

    def covered(self) -> dict[str, object]:
        """Return it as what is digested."""
        network = self.network
        # Only what is set: models of before there was a choice keep their digests.
        precision = [] if network.precision == "float32" else [network.precision]
        geometry, tile = self.geometry, self.geometry.tile
        draft = {"draft": True} if geometry.draft else {}
        cut = {"tile": [tile.size, tile.overlap]} if tile else {}
        roi = {"roi": "of each image"} if self.each_has_roi else {}
        return {
            "method": self.method,
            "options": self.method_options,
            "geometry": {"resize": geometry.resize, "crop": geometry.crop, **draft, **cut},
            "backbone": [network.name, network.layers, network.weights_sha256, *precision],
            "index": self.index,
            "seed": self.seed,
            **({"robust": True} if self.robust else {}),
            **roi,
        }

    def group_digest(self, files: Sequence[FileRecord]) -> str:
        """Return the digest of one group's model.

        Args:
            files: All its files; those that no score depends on are left out.
        """
        arrays = {f.role: f.sha256 for f in files if not f.role.startswith(NOT_SCORED_WITH)}
        return digest({**self.covered(), "files": arrays})


def require_whole(model: Folder, manifest: Manifest) -> None:
    """Refuse a manifest whose groups are not made of the files that it names for them.

    A file of another group or model has a digest of its own, and passes for whole by that alone.

    Raises:
        ModelError: if a group's digest is not that of its files, method, geometry and weights.
    """
    identity = Identity.of(manifest)
    for group, record in manifest.groups.items():
        found = identity.of_group(group).group_digest(record.files)
        if found != record.digest:
            raise ModelError(
                f"{model.path(MANIFEST)}: group '{group}' has digest {record.digest[:12]}, but the "
                f"files listed for it have {found[:12]}: it was changed by hand; {AGAIN}"
            )
