"""fit: embeddings of each fragment into the run's folder, then one model per group from them."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pipeline.config import BackboneSettings, Scalar, Settings
from pipeline.errors import ConfigError
from pipeline.features.backbone import Extractor, load_backbone
from pipeline.images.geometry import Geometry
from pipeline.index.choose import search_over
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment
from pipeline.lake.models import GroupRecord, group_digest
from pipeline.methods import build
from pipeline.methods.contract import Fitted, Held, M, Method, Progress, T
from pipeline.scores.heatmap import ColourScale
from pipeline.stages.batch import FragmentBatch, advance, result_of
from pipeline.stages.models import bank_files, measured_quality, store_group
from pipeline.tables import PROVENANCE

# Training images that the colour scale is measured on, evenly spread: a 95 % quantile of 200
# rests on 10 images above it.
_SCALE_IMAGES = 200

# Patches on which an approximate index is held against exact search: one missed in 2000 is seen.
_HELD_OUT_PATCHES = 2000

EMBEDDINGS = ".safetensors"


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
    batch_size: int
    threads: int = 1

    def start(self) -> "Embed":
        """Return the stage, with the backbone loaded."""
        method = build(self.method, self.method_options)
        backbone = load_backbone(self.backbone, seed=self.seed)
        return Embed(self, Extractor(backbone, method.embed, self.batch_size, self.threads))


class Embed:
    """Stage: writes a fragment's embeddings and what they are of; returns its result."""

    def __init__(self, settings: Embedder, extractor: Extractor) -> None:
        self._settings = settings
        self._extractor = extractor

    def __call__(self, table: pa.Table) -> pa.Table:
        """Store the fragment's embeddings; return one row of schema `FRAGMENT_RESULT`."""
        return result_of(advance("embed", self._embed, table))

    def _embed(self, batch: FragmentBatch) -> FragmentBatch:
        is_ok = [status == "ok" for status in batch.statuses()]
        used = batch.rows.filter(pa.array(is_ok, pa.bool_()))
        described = _Described(
            image_ids=used.column("image_id").to_pylist(),
            source_rows=used.column("source_row").to_pylist(),
            statuses=batch.statuses(),
        )
        content = save_safetensors({"embeddings": self._extractor(batch.array)})
        # The embeddings last: they are the marker of a finished fragment.
        name = f"{self._settings.partials}{batch.fragment.key}"
        self._settings.model.write(f"{name}.json", json.dumps(asdict(described)).encode())
        self._settings.model.write(f"{name}{EMBEDDINGS}", content)
        return replace(batch, array=np.empty(0, np.float32))


@dataclass(frozen=True)
class _Described:
    # Of the usable images.
    image_ids: list[str]
    source_rows: list[int]
    # Of all images that were to be used.
    statuses: list[str]


@dataclass(frozen=True)
class StoredCorpus:
    """A group's embeddings as the embed stage left them, in the plan's order."""

    model: Folder
    partials: str
    fragments: Sequence[Fragment]
    workers: "Workers"
    # Bytes that one process may hold, and threads of this one.
    memory_budget: int
    threads: int

    @cached_property
    def identities(self) -> list[tuple[str, str, int]]:
        """(image_id, source_path, source_row) of each image of the corpus."""
        return [
            (image_id, fragment.path, row)
            for fragment, described in zip(self.fragments, self._described, strict=True)
            for image_id, row in zip(described.image_ids, described.source_rows, strict=True)
        ]

    @property
    def unusable(self) -> dict[str, int]:
        """The number of images that could not be used, by status."""
        counts = Counter(status for part in self._described for status in part.statuses)
        return {status: counts[status] for status in sorted(counts) if status != "ok"}

    @property
    def images(self) -> int:
        """Number of usable images."""
        return len(self.identities)

    @cached_property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding."""
        return next(self.embeddings()).shape[1:]

    @property
    def processes(self) -> int:
        """Processes that can hold a part of the corpus each."""
        return self.workers.processes

    def embeddings(self) -> Iterator[Float32[np.ndarray, "images ..."]]:
        """Yield each fragment's embeddings."""
        for name, _ in self._named:
            yield _load(self.model, [name])

    def each(self, work: Callable[[Float32[np.ndarray, "images ..."], int], T]) -> Sequence[T]:
        """Return the results of `work` on each fragment, in order."""
        calls = [partial(_work_on, self.model, [name], first, work) for name, first in self._named]
        return self.workers.each(calls)

    def held(
        self, start: Callable[[Float32[np.ndarray, "images ..."], int], M], members: int
    ) -> AbstractContextManager[Held[M]]:
        """Start `members` things, or fewer where there are fewer fragments."""
        shares = np.array_split(np.arange(len(self._named)), min(members, len(self._named)))
        starts = []
        for share in shares:
            names = [self._named[i][0] for i in share]
            starts.append(partial(_work_on, self.model, names, self._named[share[0]][1], start))
        return self.workers.members(starts)

    @cached_property
    def _named(self) -> list[tuple[str, int]]:
        """Name of the embeddings, and number of the first image, of each fragment that has any."""
        counts = [len(described.image_ids) for described in self._described]
        firsts = np.cumsum([0, *counts])
        return [
            (f"{self.partials}{fragment.key}{EMBEDDINGS}", int(first))
            for fragment, count, first in zip(self.fragments, counts, firsts, strict=False)
            if count
        ]

    @cached_property
    def _described(self) -> list[_Described]:
        return [
            _Described(**json.loads(self.model.read(f"{self.partials}{fragment.key}.json")))
            for fragment in self.fragments
        ]


class Workers(Protocol):
    """Where a corpus has its work done: what a runner offers."""

    @property
    def processes(self) -> int:
        """Processes that can hold something in memory at the same time."""

    def each(self, calls: Sequence[Callable[[], T]]) -> Sequence[T]:
        """Return the result of each call, in their order."""

    def members(self, starts: Sequence[Callable[[], M]]) -> AbstractContextManager[Held[M]]:
        """Start a thing in a worker each."""


def _load(model: Folder, names: Sequence[str]) -> Float32[np.ndarray, "images ..."]:
    arrays = [load_safetensors(model.read(name))["embeddings"] for name in names]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _work_on(
    model: Folder,
    names: Sequence[str],
    first: int,
    work: Callable[[Float32[np.ndarray, "images ..."], int], T],
) -> T:
    return work(_load(model, names), first)


def fit_group(
    method: Method,
    corpus: StoredCorpus,
    identity: Mapping[str, object],
    settings: Settings,
    progress: Progress | None = None,
) -> GroupRecord:
    """Fit one group and write its files; return the record for `model.json`.

    Args:
        method: With its settings.
        corpus: The group's training images.
        identity: What the model's digest covers besides its arrays, `geometry` among it.
        settings: Its `seed` and `index`.
        progress: Called with (done, total).

    Raises:
        ConfigError: if no image of the group can be used, or its index is below the recall asked.
    """
    group = corpus.fragments[0].group
    if corpus.images == 0:
        raise ConfigError(
            f"group '{group}' has no usable training image (label good, split not test); "
            f"unusable: {corpus.unusable or 'none'}"
        )
    fitted = method.fit(corpus, seed=settings.seed, progress=progress)
    bank = bank_files(fitted, settings.index)
    facts = dict(fitted.facts)
    if settings.index.kind != "exact":
        queries = _held_out(corpus, fitted)
        facts |= asdict(measured_quality(fitted, bank, settings.index, queries))
    geometry = identity["geometry"]
    assert isinstance(geometry, dict)
    scale = _colour_scale(method, corpus, fitted, Geometry(**geometry))
    described = (scale, _provenance(corpus, fitted))
    files = store_group(corpus.model, group, fitted.state, bank, described)
    return GroupRecord(
        digest=group_digest(identity, files),
        images=corpus.images,
        unusable_images=corpus.unusable,
        index=settings.index.kind,
        facts=facts,
        files=files,
    )


def _held_out(corpus: StoredCorpus, fitted: Fitted) -> Float32[np.ndarray, "queries dim"]:
    """Return normal patches that are not in the bank, evenly spread."""
    rows, taken = [], {tuple(place) for place in fitted.origin.tolist()}
    _, height, width = (corpus.images, *corpus.embedding_shape[:2])
    step = max(1, corpus.images * height * width // _HELD_OUT_PATCHES)
    number = 0
    for embeddings in corpus.embeddings():
        flat = embeddings.reshape(-1, embeddings.shape[-1])
        for local in range(-number % step, len(flat), step):
            image, patch = divmod(number + local, height * width)
            if (image, *divmod(patch, width)) not in taken:
                rows.append(flat[local])
        number += len(flat)
    return np.stack(rows) if rows else np.empty((0, fitted.memory_bank.shape[1]), np.float32)


def _provenance(corpus: StoredCorpus, fitted: Fitted) -> pa.Table:
    images = [corpus.identities[image] for image in fitted.origin[:, 0]]
    columns = {
        "bank_row": np.arange(len(images)),
        "image_id": [image_id for image_id, _, _ in images],
        "source_path": [path for _, path, _ in images],
        "source_row": [row for _, _, row in images],
        "y": fitted.origin[:, 1],
        "x": fitted.origin[:, 2],
    }
    arrays = [pa.array(columns[f.name]).cast(f.type) for f in PROVENANCE]
    return pa.Table.from_arrays(arrays, schema=PROVENANCE)


def _colour_scale(
    method: Method, corpus: StoredCorpus, fitted: Fitted, geometry: Geometry
) -> ColourScale:
    """Score training images against the bank without their own rows."""
    search = search_over(fitted.memory_bank)
    step = max(1, -(-corpus.images // _SCALE_IMAGES))
    height, width = geometry.input_size
    peaks = []
    number = 0
    for embeddings in corpus.embeddings():
        for embedding in embeddings:
            own = np.flatnonzero(fitted.origin[:, 0] == number)
            if number % step == 0 and len(own) < search.size:
                scores = method.score(embedding[None], fitted.state, search, ignore=own)
                anomaly_map = scores.anomaly_maps[0]
                frame = geometry.to_frame(anomaly_map, (width, height), (height, width))
                peaks.append(float(frame.max()))
            number += 1
    return ColourScale.of_normal(np.asarray(peaks or [0.0], np.float32))
