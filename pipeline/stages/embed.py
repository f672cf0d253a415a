"""embed: pixels to embeddings, stored in the run's folder: the first half of a fit."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from torch import Tensor

from patchlake.pipeline.config import BackboneSettings, Scalar, TileSettings
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.extractor import Extractor, in_pieces, joined
from patchlake.pipeline.features.summary import SUMMARY, embedding_of, summary_of
from patchlake.pipeline.groups.partials import EMBEDDINGS, EmbeddedImages
from patchlake.pipeline.headway import Passed, listener
from patchlake.pipeline.index.threads import BlockThreads
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import Method
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.per_image import write_per_image
from patchlake.pipeline.stages.batch import FragmentBatch, advance, result_of
from patchlake.pipeline.storage.folder import Folder

# Images whose embeddings are in memory at a time: of PatchCore's 1024 dimensions 100 MB.
_SLICE = 32
# Fewer of inputs that are larger than 512 x 512.
_SLICE_PIXELS = _SLICE * 512 * 512


@dataclass(frozen=True)
class Embedder:
    """Settings of the embed stage; `start` loads the backbone and returns the stage."""

    model: Folder
    # Folder of the partial results, relative to MODEL.
    partials: str
    backbone: BackboneSettings
    method: str
    method_options: Mapping[str, Scalar]
    seed: int
    # How large inputs are cut.
    tile: TileSettings | None = None
    # Inputs of an image: itself, and copies that are turned.
    rotations: int = 1

    def start(self, threads: int) -> "Embed":
        """Return the stage, with the backbone loaded. It works in so many threads."""
        listener().waits(f"the weights of {self.backbone.name}")
        method = build(self.method, self.method_options)
        storage = self.model.storage
        backbone = load_backbone(self.backbone, seed=self.seed, storage=storage)
        listener().waits("")
        extractor = Extractor(backbone, _EmbedAndSum(method, self.seed), self.tile)
        return Embed(self, extractor, BlockThreads(extractor.threads(threads)))


@dataclass(frozen=True)
class _EmbedAndSum:
    method: Method
    seed: int

    def __call__(self, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
        embedded = self.method.embed(feature_maps, seed=self.seed)
        return {**embedded, SUMMARY: summary_of(feature_maps)}


class Embed:
    """Stage: writes a fragment's embeddings and what they are of; returns its result."""

    def __init__(self, settings: Embedder, extractor: Extractor, threads: BlockThreads) -> None:
        self._settings = settings
        self._extractor = extractor
        self._threads = threads

    def __call__(self, table: pa.Table) -> pa.Table:
        """Store the fragment's embeddings; return one row of schema `FRAGMENT_RESULT`."""
        return result_of(advance("embed", self._embed, table))

    def _embed(self, batch: FragmentBatch) -> FragmentBatch:
        is_ok = [status == "ok" for status in batch.statuses()]
        used = batch.rows.filter(pa.array(is_ok, pa.bool_()))
        images = EmbeddedImages(
            image_ids=used.column("image_id").to_pylist(),
            source_rows=used.column("source_row").to_pylist(),
            statuses=batch.statuses(),
            sha256s=used.column("sha256").to_pylist(),
            part_ids=used.column("part_id").to_pylist(),
            thumbnails=[b64encode(one).decode() for one in used.column("thumbnail").to_pylist()],
            interiors=[b64encode(one.to_bytes()).decode() for one in batch.interiors()],
            brightness=used.column("brightness").to_pylist(),
            sharpness=used.column("sharpness").to_pylist(),
        )
        name = f"{self._settings.partials}{batch.fragment.key}"
        model = self._settings.model
        write_per_image(model, f"{name}{EMBEDDINGS}", self._written(batch, images, name))
        return replace(batch, array=np.empty(0, np.float32))

    def _written(self, batch: FragmentBatch, images: EmbeddedImages, name: str) -> Iterator[Arrays]:
        """Yield the embeddings; write what they are of behind the last of them.

        Their file is put when this has ended: it is the marker of a finished fragment.
        """
        seen: list[list[float]] = []
        for arrays in self._embedded(batch, Passed("embed", batch.fragment.key)):
            seen += embedding_of(arrays.pop(SUMMARY)).tolist()
            yield arrays
        whole = replace(images, embeddings=seen)
        self._settings.model.write(f"{name}.json", json.dumps(asdict(whole)).encode())

    def _embedded(self, batch: FragmentBatch, passed: Passed) -> Iterator[dict[str, np.ndarray]]:
        pixels, interiors = batch.array, batch.interiors()
        *_, height, width, _ = pixels.shape
        copies, size = self._settings.rotations, self._extractor.at_once((height, width))
        few = min(_SLICE, _SLICE_PIXELS // max(1, height * width))
        # Each thread gets at least one batch of a slice.
        slice_ = max(few, size * self._threads.count)
        for some, own in in_pieces(pixels, interiors, max(1, slice_ // copies)):
            # Copies of one image stand behind one another.
            inputs = some.reshape(-1, height, width, 3)
            embedded = self._threads.map(self._of_batch, in_pieces(inputs, own, size))
            yield from embedded if copies == 1 else (_with_copies(joined(embedded), copies),)
            passed(len(some))

    def _of_batch(self, batch: tuple[np.ndarray, Sequence[Interior]]) -> dict[str, np.ndarray]:
        return self._extractor(*batch)


def _with_copies(embedded: dict[str, np.ndarray], copies: int) -> dict[str, np.ndarray]:
    """Return the embeddings of images of which each has copies, itself first.

    Grids of patches (rows, columns, dim) of an image's copies lie below one another, as one of
    (copies * rows, columns, dim). What an image looks like as a whole is of itself alone.
    """
    found = {}
    for name, array in embedded.items():
        if name == SUMMARY:
            found[name] = array[::copies]
        else:
            inputs, rows, columns, dim = array.shape
            found[name] = array.reshape(inputs // copies, copies * rows, columns, dim)
    return found
