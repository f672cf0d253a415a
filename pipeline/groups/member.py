"""A member: one fitted model, as a job that scores with it has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from patchlake.pipeline.config import BackboneSettings, Layers
from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.features.backbone import Backbone, load_backbone
from patchlake.pipeline.groups.banks import Holders, SharedBank, searched_bytes, sharded_search
from patchlake.pipeline.groups.loading import held_bytes
from patchlake.pipeline.images.geometry import Geometries, Geometry, geometry_of
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import Mutual
from patchlake.pipeline.model_store.models import Manifest
from patchlake.pipeline.storage.folder import Folder


@dataclass(frozen=True)
class Member:
    """One fitted model: all of what scores, or a part of an ensemble."""

    model: Folder
    manifest: Manifest
    # Where the weights are now; their digest must be the manifest's.
    weights: str | None
    # Group -> who holds its bank, where it does not fit one process.
    holders: Mapping[str, Holders] = field(default_factory=dict)
    # Group -> its bank, where the workers of a node have it in common.
    banks: Mapping[str, SharedBank] = field(default_factory=dict)

    def bank(self, group: str) -> Search | None:
        """Return a bank that is held elsewhere, as a search; None where it has to be loaded."""
        if group in self.holders:
            return sharded_search(self.holders[group], self.manifest.groups[group])
        return self.banks[group].get() if group in self.banks else None

    def own_bytes(self, group: str) -> int:
        """Return about what a worker that has loaded a group holds of it by itself."""
        if group in self.holders:
            return 0
        record = self.manifest.groups[group]
        # The rows' bounds are its own: at most 257 coordinates of 5 bytes, taken for another row.
        shared = searched_bytes(record) // 2 if group in self.banks else 0
        return held_bytes(record) - shared

    @property
    def geometry(self) -> Geometry | Geometries:
        """How an image becomes the model's input, group by group."""
        fixed = self.manifest.geometry
        shapes, is_cut = self.manifest.shapes, fixed.tile is not None
        return geometry_of(fixed.resize, fixed.crop, shapes, is_cut=is_cut)

    @property
    def is_mutual(self) -> bool:
        """Whether images that the model has are scored as if they were new to it."""
        return isinstance(build(self.manifest.method, self.manifest.method_options), Mutual)

    def backbone(self, layers: Layers) -> Backbone:
        """Return the network with these layers."""
        fitted = self.manifest.backbone
        settings = BackboneSettings(
            name=fitted.name, layers=layers, weights=self.weights, precision=fitted.precision
        )
        seed = self.manifest.settings.seed
        return load_backbone(settings, seed=seed, storage=self.model.storage)

    def checked_backbone(self) -> Backbone:
        """Return the network of the fit.

        Raises:
            ModelError: if the weights are not those that the model was fitted with.
        """
        fitted = self.manifest.backbone
        backbone = self.backbone(fitted.layers)
        if backbone.weights_sha256 != fitted.weights_sha256:
            raise ModelError(
                f"weights '{self.weights or 'default'}' of {fitted.name} have SHA-256 "
                f"{backbone.weights_sha256[:12]}…, the model was fitted with "
                f"{fitted.weights_sha256[:12]}… from '{fitted.weights or 'default'}'; "
                "name those with --set backbone.weights=, or fit again"
            )
        return backbone
