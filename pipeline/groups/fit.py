"""fit: one group's model from its stored embeddings, its calibration, and its files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.calibrate import Calibrator, spread
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.files import Accounts, store_group
from patchlake.pipeline.groups.gallery import StoredGallery, write_gallery
from patchlake.pipeline.groups.loading import MEASURED_PATCHES, bank_files, measured_quality
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.methods.shared.contract import Fitted, MemoryBank, Method, Model, Progress
from patchlake.pipeline.methods.shared.selection import gather_rows
from patchlake.pipeline.model_store.models import FileRecord, GroupRecord, group_digest
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.storage.folder import Folder


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
    bank, facts = bank_and_facts(corpus, fitted, settings)
    calibrator = calibrator_of(method, corpus.model, fitted, gallery, identity)
    candidates = np.arange(corpus.images) if fitted.unseen is None else fitted.unseen
    chosen = spread(candidates, len(candidates), method.calibration_images)
    members = Membership.of(corpus, 0).measured(list(calibrator.measure(corpus, chosen)))
    made = Made(fitted, bank, facts, gallery, members, corpus.unusable)
    return store(corpus.model, corpus.group, made, identity, settings)


@dataclass(frozen=True)
class Made:
    """What a group's files are made of."""

    fitted: Fitted
    # From `bank_and_facts`.
    bank: Mapping[str, bytes]
    facts: dict[str, float | str]
    gallery: list[FileRecord]
    members: Membership
    unusable: dict[str, int]


def store(
    model: Folder, group: str, made: Made, identity: Mapping[str, object], settings: Settings
) -> GroupRecord:
    """Write a group's files; return the record for `model.json`."""
    fitted = made.fitted
    origin = None if fitted.bank is None else fitted.bank.origin
    accounts = Accounts(
        calibration=Calibration.of(made.members.samples(), fitted.threshold),
        images=made.members.table,
        provenance=None if origin is None else made.members.provenance(origin),
        statistics=fitted.statistics,
    )
    files = store_group(model, group, fitted.state, made.bank, accounts) + made.gallery
    return GroupRecord(
        digest=group_digest(identity, files),
        images=made.members.count,
        unusable_images=made.unusable,
        index=settings.index.kind if made.bank else None,
        facts=made.facts,
        files=files,
    )


def calibrator_of(
    method: Method,
    model: Folder,
    fitted: Fitted,
    gallery: list[FileRecord],
    identity: Mapping[str, object],
) -> Calibrator:
    """Return what measures the training images of a group that was just fitted."""
    geometry = identity["geometry"]
    assert isinstance(geometry, dict)
    search = None if fitted.bank is None else search_over(ExactSearch.over(fitted.bank.rows))
    opened = StoredGallery.open(model, gallery) if gallery else None
    prepared = method.prepare(Model(fitted.state, search, opened))
    return Calibrator(method, fitted, prepared, Geometry(**geometry))


def bank_and_facts(
    corpus: StoredCorpus, fitted: Fitted, settings: Settings, *, before: int = 0
) -> tuple[dict[str, bytes], dict[str, float | str]]:
    """Return the memory bank as files, if there is one, and the facts with its index's quality.

    Of the model's images, `before` come before those of the corpus.
    """
    if fitted.bank is None:
        return {}, fitted.facts
    files = bank_files(fitted.bank, settings.index)
    if settings.index.kind == "exact":
        return files, fitted.facts
    queries = _held_out(corpus, fitted.bank, before)
    quality = measured_quality(fitted.bank, files, settings.index, queries)
    return files, fitted.facts | asdict(quality)


def _held_out(
    corpus: StoredCorpus, bank: MemoryBank, before: int
) -> Float32[np.ndarray, "queries dim"] | None:
    """Return normal patches that are not in the bank, evenly spread; None if all are in it."""
    assert bank.origin is not None, "the method is not approximable"
    *grid, _ = corpus.shapes[bank.embedding]
    height, width = grid or (1, 1)
    patches = corpus.images * height * width
    origin = bank.origin - np.array([before, 0, 0])
    of_corpus = origin[origin[:, 0] >= 0]
    taken = np.ravel_multi_index(tuple(of_corpus.T), (corpus.images, height, width))
    candidates = np.arange(0, patches, max(1, patches // MEASURED_PATCHES))
    left = np.setdiff1d(candidates, taken)
    return gather_rows(corpus, left, bank.embedding) if len(left) else None
