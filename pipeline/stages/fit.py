"""fit: one group's model from its stored embeddings, its calibration, and its files."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.images.geometry import Geometry
from pipeline.index.choose import search_over
from pipeline.lake.models import FileRecord, GroupRecord, group_digest
from pipeline.methods.contract import Fitted, MemoryBank, Method, Model, Progress, Scores
from pipeline.methods.selection import gather_rows
from pipeline.scores.calibration import Calibration, Spread
from pipeline.scores.heatmap import ColourScale
from pipeline.stages.corpus import StoredCorpus
from pipeline.stages.gallery import StoredGallery, write_gallery
from pipeline.stages.models import bank_files, measured_quality, store_group
from pipeline.tables import PROVENANCE

# Patches on which an approximate index is held against exact search: one missed in 2000 is seen.
_HELD_OUT_PATCHES = 2000


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
    if corpus.images == 0:
        raise ConfigError(
            f"group '{corpus.group}' has no usable training image (label good, split not test); "
            f"unusable: {corpus.unusable or 'none'}"
        )
    fitted = method.fit(corpus, seed=settings.seed, progress=progress)
    gallery = write_gallery(corpus, fitted.gallery) if fitted.gallery else []
    bank, facts = _bank(corpus, fitted, settings)
    geometry = identity["geometry"]
    assert isinstance(geometry, dict)
    calibration = _calibrate(method, corpus, fitted, gallery, Geometry(**geometry))
    provenance = None if fitted.bank is None else _provenance(corpus, fitted.bank)
    files = store_group(corpus.model, corpus.group, fitted.state, bank, (calibration, provenance))
    files += gallery
    return GroupRecord(
        digest=group_digest(identity, files),
        images=corpus.images,
        unusable_images=corpus.unusable,
        index=settings.index.kind if bank else None,
        facts=facts,
        files=files,
    )


def _bank(
    corpus: StoredCorpus, fitted: Fitted, settings: Settings
) -> tuple[dict[str, bytes], dict[str, float | str]]:
    """Return the memory bank as files, if there is one, and the facts with its index's quality."""
    if fitted.bank is None:
        return {}, fitted.facts
    files = bank_files(fitted.bank, settings.index)
    if settings.index.kind == "exact":
        return files, fitted.facts
    queries = _held_out(corpus, fitted.bank)
    quality = measured_quality(fitted.bank, files, settings.index, queries)
    return files, fitted.facts | asdict(quality)


def _held_out(corpus: StoredCorpus, bank: MemoryBank) -> Float32[np.ndarray, "queries dim"]:
    """Return normal patches that are not in the bank, evenly spread.

    Raises:
        ConfigError: if the bank's rows are not of images, so that nothing can be held against it.
    """
    if bank.origin is None:
        raise ConfigError(
            f"the memory bank of group '{corpus.group}' has {len(bank.rows)} rows that are of no "
            "single image: it is searched exactly, use index.kind=exact"
        )
    *grid, _ = corpus.shapes[bank.embedding]
    height, width = grid or (1, 1)
    patches = corpus.images * height * width
    taken = np.ravel_multi_index(tuple(bank.origin.T), (corpus.images, height, width))
    candidates = np.arange(0, patches, max(1, patches // _HELD_OUT_PATCHES))
    return gather_rows(corpus, np.setdiff1d(candidates, taken), bank.embedding)


def _provenance(corpus: StoredCorpus, bank: MemoryBank) -> pa.Table | None:
    if bank.origin is None:
        return None
    numbers = bank.origin[:, 0].tolist()
    identities = corpus.identities(numbers)
    images = [identities[number] for number in numbers]
    columns = {
        "bank_row": np.arange(len(images)),
        "image_id": [image_id for image_id, _, _ in images],
        "source_path": [path for _, path, _ in images],
        "source_row": [row for _, _, row in images],
        "y": bank.origin[:, 1],
        "x": bank.origin[:, 2],
    }
    arrays = [pa.array(columns[f.name]).cast(f.type) for f in PROVENANCE]
    return pa.Table.from_arrays(arrays, schema=PROVENANCE)


def _calibrate(
    method: Method,
    corpus: StoredCorpus,
    fitted: Fitted,
    gallery: list[FileRecord],
    geometry: Geometry,
) -> Calibration:
    """Score training images as if they were new, and say how normal images score."""
    search = None if fitted.bank is None else search_over(fitted.bank.rows)
    opened = StoredGallery.open(corpus.model, gallery) if gallery else None
    model = method.prepare(Model(fitted.state, search, opened))
    found = list(_scored_as_new(method, corpus, fitted, model))
    scores = Spread.of(np.array([one.image_scores[0] for one in found], np.float32))
    maps = [one.anomaly_maps[0] for one in found if one.anomaly_maps is not None]
    calibration = Calibration(len(found), scores, None, None, fitted.threshold)
    if found and not maps:
        return calibration
    height, width = geometry.input_size
    frames = [geometry.to_frame(grid, (width, height), (height, width)) for grid in maps]
    peaks = np.array([frame.max() for frame in frames] or [0.0], np.float32)
    patches = Spread.of(np.concatenate([grid.ravel() for grid in maps] or [np.zeros(1)]))
    return replace(calibration, patches=patches, scale=ColourScale.of_normal(peaks))


def _scored_as_new(
    method: Method, corpus: StoredCorpus, fitted: Fitted, model: Model
) -> Iterator[Scores]:
    """Yield the scores of some training images, evenly spread, each without its part in the model.

    An image whose rows are the whole bank cannot be, and is passed over.
    """
    candidates = np.arange(corpus.images) if fitted.unseen is None else fitted.unseen
    step = max(1, -(-len(candidates) // method.calibration_images))
    for image, one in corpus.some(candidates[::step].tolist()):
        own = _own_rows(fitted, image)
        if model.search is None or len(own) < model.search.size:
            yield method.score(one, model, ignore=None if fitted.unseen is not None else own)


def _own_rows(fitted: Fitted, image: int) -> np.ndarray:
    if fitted.bank is None or fitted.bank.origin is None:
        return np.empty(0, np.int64)
    return np.flatnonzero(fitted.bank.origin[:, 0] == image)
