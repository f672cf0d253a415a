"""The model folder: `model.json`, and per group files that carry their digest in the name.

    model.json                                   written last; the only object that is replaced
    g=<group>/state-<sha12>.safetensors          arrays of the method
    g=<group>/index-00000-of-00001-<sha12>.faiss the memory bank, if the method has one
    g=<group>/gallery-000000000-<sha12>.safetensors  feature maps of training images, of SPADE
    g=<group>/statistics-<sha12>.safetensors     of Mahalanobis AD: for images that join or leave
    g=<group>/roi-<sha12>.json                   what of its pictures counts, where not all does
    g=<group>/images-<sha12>.parquet             every image that was ever in the model
    g=<group>/calibration-<sha12>.json           how normal images score, also part by part; colours
    g=<group>/provenance-<sha12>.parquet         bank row -> image, y, x

Nothing is pickled. Every file is checked against its SHA-256 before it is parsed.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt

from patchlake.pipeline.config import (
    ImageSettings,
    Layers,
    RecordedSettings,
    Scalar,
    TileSettings,
)
from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.storage import cache
from patchlake.pipeline.storage.folder import Folder, escape
from patchlake.pipeline.storage.owned import reading
from patchlake.pipeline.storage.roles import Use, require

FORMAT = 2
MANIFEST = "model.json"

# Beginnings of the roles of files that no score depends on.
NOT_SCORED_WITH = ("provenance", "images.", "statistics.")

# What to do about a model that is damaged.
AGAIN = "restore it, or fit again"

# Of a file that is only checked; in S3 each is a request.
_BLOCK = 16 * 2**20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of a model: what it is, and how to know that it is still that."""

    role: str
    name: str
    bytes: int
    sha256: str


class GroupRecord(_Record):
    """One group's model. `digest` is equal for equal method, geometry, weights and arrays."""

    digest: str
    images: int
    # Of the last step that read images.
    unusable_images: dict[str, int]
    # How the bank's files are searched; None where the method has no bank.
    index: Literal["exact", "hnsw", "ivf"] | None
    # For example bank_rows, patches, covering_radius.
    facts: dict[str, float | str]
    files: list[FileRecord]
    # (height, width) of its inputs where `image.resize` is `auto`; None where all groups have one.
    shape: tuple[PositiveInt, PositiveInt] | None = None


class GeometryRecord(_Record):
    """`resize`, `crop`, `pixels`, `tile`, `bits` and `draft` of the fit's `image` settings."""

    # Of `auto`, each group's record has the shape.
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | Literal["auto"]
    crop: PositiveInt | None
    # Models of before it was kept have none: then, 16 bits were 16.
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    # As `bits`: then, every picture was decoded as it is.
    draft: bool = False
    # Where `resize` is `auto`.
    pixels: PositiveInt | None = None
    # Models of before there were tiles have none.
    tile: TileSettings | None = None

    @classmethod
    def of(cls, settings: ImageSettings) -> "GeometryRecord":
        """Return the part of the image settings that a model fixes."""
        return cls(
            resize=settings.resize,
            crop=settings.crop,
            bits=settings.bits,
            draft=settings.draft,
            pixels=settings.pixels,
            tile=settings.tile,
        )

    @property
    def settings(self) -> dict[str, object]:
        """The settings under `image` that it stands for, as they are."""
        return dict(self)


class Network(_Record):
    """The backbone of the fit. `weights` is where it was; `weights_sha256` is what it was."""

    name: str
    layers: Layers
    weights: str | None
    weights_sha256: str
    # Of its coarser layers. Models of before it could be chosen are float32.
    precision: Literal["float32", "bfloat16"] = "float32"


class Change(_Record):
    """What a step of the lineage did to one group: `parent` and `digest` are of its models."""

    parent: str | None
    digest: str
    added: int
    withdrawn: int


class ReviewsTaken(_Record):
    """The reviews that a step of the lineage went by."""

    # A reviews table, or the file of decisions.
    folder: str
    # Images that were reviewed, and a digest of what was decided on them.
    images: int
    digest: str


class Step(_Record):
    """One step of a model's life: its fit, or images that joined or left later.

    Which images, the groups' `images.parquet` say: their `joined` and `left` number these steps.
    """

    run: str
    verb: Literal["fit", "update", "withdraw"]
    at: AwareDatetime
    # Where the images were; relative paths in the model are relative to it.
    images: str
    where: str | None
    groups: dict[str, Change]
    # None where it went by none.
    reviews: ReviewsTaken | None = None


class Manifest(_Record):
    """`model.json`."""

    format: int
    # The run that made it; the same run again has nothing to do.
    run: str
    created_at: AwareDatetime
    preset: str | None
    method: str
    method_options: dict[str, Scalar]
    backbone: Network
    geometry: GeometryRecord
    groups: dict[str, GroupRecord]
    failed_groups: dict[str, str]
    libraries: dict[str, str]
    settings: RecordedSettings
    # From the fit on. Models of before it was kept have none.
    lineage: list[Step] = []

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Group -> (height, width) of its inputs, of those that have a shape of their own."""
        return {group: one.shape for group, one in self.groups.items() if one.shape}


def read_manifest(model: Folder) -> Manifest:
    """Return a model's manifest.

    Raises:
        ModelError: if there is none, or it is of another format.
        ConfigError: if the folder is another table.
    """
    try:
        with reading(model.path(MANIFEST), AGAIN, ModelError):
            content = model.read(MANIFEST)
    except FileNotFoundError:
        require([Use(model, "model")])
        raise ModelError(
            f"{model.root} has no {MANIFEST}: no model was published there; run `patchlake fit`"
        ) from None
    with reading(model.path(MANIFEST), AGAIN, ModelError):
        manifest = Manifest.model_validate_json(content)
    if manifest.format != FORMAT:
        raise ModelError(
            f"{model.path(MANIFEST)} is of format {manifest.format}, this patchlake reads {FORMAT}"
        )
    return manifest


def write_manifest(model: Folder, manifest: Manifest) -> None:
    """Publish: readers see the old model until this put, and the new one after it."""
    model.write(MANIFEST, manifest.model_dump_json(indent=1).encode())


def publish_manifest(model: Folder, manifest: Manifest, *, overwrite: bool) -> None:
    """Publish a fit: a model that another run has published meanwhile is not lost unsaid.

    Raises:
        ConfigError: if there is one, and it is not to be replaced.
    """
    # What an earlier life of this very run was followed by.
    model.remove(_claim(manifest.run))
    if model.create(MANIFEST, manifest.model_dump_json(indent=1).encode()):
        return
    present = read_manifest(model)
    if present.run != manifest.run and not overwrite:
        raise ConfigError(
            f"{model.root} was published by run {present.run} while this run, {manifest.run}, went "
            "on; choose another MODEL, or replace it with --overwrite"
        )
    write_manifest(model, manifest)


def claim_step(model: Folder, base: str, run: str) -> str:
    """Take the step from the model of one run to that of another, which one run only can.

    Returns:
        The run that has it: `run`, or another one that was earlier.
    """
    name = _claim(base)
    if model.create(name, run.encode()):
        return run
    with reading(model.path(name), "remove it if no update or withdraw of this model runs"):
        return model.read(name).decode()


def give_up_step(model: Folder, base: str) -> None:
    """Let another run take the step: the one that had it is no more."""
    model.remove(_claim(base))


def _claim(base: str) -> str:
    return f"_runs/{base}/next"


def write_files(model: Folder, group: str, contents: Mapping[str, bytes]) -> list[FileRecord]:
    """Write a group's files, given as role (`state.safetensors`) -> content."""
    records = []
    for role, content in contents.items():
        sha256 = hashlib.sha256(content).hexdigest()
        stem, dot, suffix = role.rpartition(".")
        name = f"g={escape(group)}/{stem}-{sha256[:12]}{dot}{suffix}"
        model.write(name, content)
        records.append(FileRecord(role=role, name=name, bytes=len(content), sha256=sha256))
    return records


def read_file(model: Folder, record: FileRecord) -> bytes:
    """Return a file's content after checking it; of a remote model from the node's cache.

    Raises:
        ModelError: if it is absent or differs from what was written, by one bit or more.
    """
    load = partial(model.read, record.name)
    try:
        with reading(model.path(record.name), AGAIN, ModelError):
            content = load() if model.is_local else cache.read(record.sha256, load)
            found = hashlib.sha256(content).hexdigest()
            if found != record.sha256 and not model.is_local:
                # The cache's disk may be what is damaged.
                cache.forget(record.sha256)
                content = load()
                found = hashlib.sha256(content).hexdigest()
    except FileNotFoundError:
        raise ModelError(f"{model.path(record.name)} is missing; fit again or restore it") from None
    _require(model, record, found)
    return content


def verify_file(model: Folder, record: FileRecord) -> None:
    """Check a file without holding it.

    Raises:
        ModelError: if it is absent or differs from what was written, by one bit or more.
    """
    try:
        with reading(model.path(record.name), AGAIN, ModelError), model.open(record.name) as file:
            digest_ = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest_.update(block)
    except FileNotFoundError:
        raise ModelError(f"{model.path(record.name)} is missing; fit again or restore it") from None
    _require(model, record, digest_.hexdigest())


def _require(model: Folder, record: FileRecord, found: str) -> None:
    if found != record.sha256:
        raise ModelError(
            f"{model.path(record.name)} is damaged: SHA-256 {found[:12]}…, {MANIFEST} says "
            f"{record.sha256[:12]}… ({model.entry(record.name).size} of {record.bytes} bytes); "
            "fit again"
        )
