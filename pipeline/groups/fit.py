"""fit: one group's model from its stored embeddings, its calibration, and its files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.calibrate import Calibrator, choose_evenly
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.files import Accounts, store_group
from patchlake.pipeline.groups.gallery import StoredGallery, write_gallery
from patchlake.pipeline.groups.loading import MEASURED_PATCHES, bank_files, measured_quality
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.groups.parts import JUDGED, judged, judged_of, told_by
from patchlake.pipeline.groups.roi import write_roi
from patchlake.pipeline.groups.suspects import (
    CleanCorpus,
    listed,
    without_suspects,
    without_their_samples,
)
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.contract import FitResult, Method, Progress
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.methods.shared.selection import gather_rows
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import FileRecord, GroupRecord
from patchlake.pipeline.scores.calibration import Calibration, Judged, Sample
from patchlake.pipeline.storage.folder import Folder


def fit_group(
    method: Method,
    corpus: StoredCorpus,
    identity: Identity,
    settings: Settings,
    progress: Progress | None = None,
) -> "FittedModel":
    """Fit one group and write its files; return the record for `model.json`, and the suspects.

    Args:
        method: With its settings.
        corpus: The group's training images.
        identity: What the digest of the group's model covers besides its arrays.
        settings: Its `seed` and `index`.
        progress: Called with (done, total).

    Raises:
        ConfigError: if no image of the group can be used, or its index is below the recall asked.
    """
    if corpus.images == 0:
        which = (
            " training image (label good, split not test)"
            if settings.fit_on == "good"
            else " image"
        )
        raise ConfigError(
            f"group '{corpus.group}' has no usable{which}; unusable: {corpus.unusable or 'none'}"
        )
    clean = CleanCorpus(corpus)
    if settings.robust:
        measure = partial(_all_samples, method, identity, settings, progress)
        clean = without_suspects(corpus, measure)
    kept = clean.corpus
    result, gallery = _fitted(method, kept, settings, progress, kept.model)
    bank, facts = bank_and_facts(kept, result, settings)
    calibrator = calibrator_of(method, kept.model, result, gallery, identity)
    candidates = np.arange(kept.images) if result.unseen is None else result.unseen
    chosen = choose_evenly(candidates, len(candidates), method.calibration_images)
    # What is left out is known as what has left: an update over the same images does not add it.
    members = Membership.of(corpus, 0).left_by(clean.numbers, 0)
    members = members.measured(list(calibrator.measure(kept, chosen)))
    members = judged_by(method, calibrator, kept, members)
    suspects = listed(corpus.group, members, clean.left_out)
    roi = write_roi(kept.model, kept.group, kept.roi)
    contents = GroupContents(result, bank, facts, gallery, members, kept.unusable, roi)
    return FittedModel(store(kept.model, kept.group, contents, identity, settings), suspects)


@dataclass(frozen=True)
class FittedModel:
    """A group's model as its files have it, and those of its images that look anomalous to it."""

    record: GroupRecord
    # Schema `SUSPECTS`.
    suspects: pa.Table


def _fitted(
    method: Method,
    corpus: StoredCorpus,
    settings: Settings,
    progress: Progress | None,
    model: Folder,
) -> tuple[FitResult, list[FileRecord]]:
    """Fit a corpus; return the result, and the gallery, which is written into a model."""
    result = method.fit(corpus, seed=settings.seed, progress=progress)
    gallery = write_gallery(corpus, result.to_gallery, model) if result.to_gallery else []
    return result, gallery


def _all_samples(
    method: Method,
    identity: Identity,
    settings: Settings,
    progress: Progress | None,
    corpus: StoredCorpus,
) -> list[Sample]:
    """Fit a corpus and return the samples by part of all its images; nothing of the fit is kept."""
    # Not in the model itself: the one that is published there may have a file of the same content.
    aside = Folder.at(corpus.model.path(corpus.partials), corpus.model.storage)
    result, gallery = _fitted(method, corpus, settings, progress, aside)
    calibrator = calibrator_of(method, aside, result, gallery, identity)
    members = Membership.of(corpus, 0)
    return judged_by(method, calibrator, corpus, members, corpus.images).part_samples()


def judged_by(
    method: Method,
    calibrator: Calibrator,
    corpus: StoredCorpus,
    members: Membership,
    at_most: int | None = None,
) -> Membership:
    """Return the members with samples by part: of so many images, else as many as verdicts need."""
    # Where many images are scored together, a search has threads of its own.
    threads = 1 if method.scored_together else corpus.threads
    wanted = JUDGED * method.calibration_images if at_most is None else at_most
    return judged(calibrator, corpus, members, wanted, threads)


@dataclass(frozen=True)
class GroupContents:
    """What a group's files and its record are made of."""

    result: FitResult
    # From `bank_and_facts`.
    bank: Mapping[str, bytes]
    facts: dict[str, float | str]
    gallery: list[FileRecord]
    membership: Membership
    # The number of images that could not be used, by status.
    unusable: dict[str, int]
    # Of `groups.roi`: one file or none.
    roi: list[FileRecord]


def store(
    model: Folder,
    group: str,
    contents: GroupContents,
    identity: Identity,
    settings: Settings,
) -> GroupRecord:
    """Write a group's files; return the record for `model.json`."""
    result, membership = contents.result, contents.membership
    origin = None if result.bank is None else result.bank.origin
    measured = Calibration.of(membership.samples(), result.threshold)
    # Where nobody said which images are good, those that look bad are not judged by.
    good = membership if settings.fit_on == "good" else without_their_samples(membership)
    calibration = replace(measured, judged=judged_of(good))
    accounts = Accounts(
        calibration=calibration,
        images=membership.table,
        provenance=None if origin is None else membership.provenance(origin),
        statistics=result.statistics,
    )
    files = store_group(model, group, result.state, contents.bank, accounts)
    files += contents.gallery + contents.roi
    return GroupRecord(
        digest=identity.group_digest(files),
        images=membership.count,
        unusable_images=contents.unusable,
        index=settings.index.kind if contents.bank else None,
        facts=contents.facts | _promise(membership, calibration.judged),
        files=files,
        shape=identity.shapes.get(group),
    )


def _promise(members: Membership, found: Judged | None) -> dict[str, float | str]:
    """Return what is said of the calibration of verdicts."""
    names = set(members.present.column("part").to_pylist()) - {None}
    told: dict[str, float | str] = {
        "parts": float(len(names)),
        "parts_told_by": told_by(members),
    }
    if found is None:
        return told
    judged_parts = len(set(found.parts))
    return told | {
        "judged_images": float(len(found.scores)),
        "judged_parts": float(judged_parts),
        "smallest_false_alarm_rate": 1 / (judged_parts + 1),
    }


def calibrator_of(
    method: Method,
    model: Folder,
    result: FitResult,
    gallery: list[FileRecord],
    identity: Identity,
) -> Calibrator:
    """Return what measures the training images of a group that was just fitted."""
    fixed = identity.geometry
    assert not isinstance(fixed.resize, str), "the identity is not of one group"
    geometry = Geometry(fixed.resize, fixed.crop)
    detector = method.prepare(_UnstoredGroup(result, model, gallery))
    return Calibrator(result, detector, geometry)


@dataclass(frozen=True)
class _UnstoredGroup:
    """A group that was just fitted: of its files only the gallery's are written."""

    result: FitResult
    model: Folder
    gallery_files: list[FileRecord]

    def state(self) -> Arrays:
        return self.result.state

    def search(self) -> Search:
        assert self.result.bank is not None, "asked for by a method whose fit returns one"
        return search_over(ExactSearch.over(self.result.bank.rows))

    def rows(self) -> Float32[np.ndarray, "bank dim"]:
        assert self.result.bank is not None, "asked for by a method whose fit returns one"
        return self.result.bank.rows

    def gallery(self) -> StoredGallery:
        return StoredGallery.open(self.model, self.gallery_files)


def bank_and_facts(
    corpus: StoredCorpus, result: FitResult, settings: Settings, *, before: int = 0
) -> tuple[dict[str, bytes], dict[str, float | str]]:
    """Return the memory bank as files, if there is one, and the facts with its index's quality.

    Of the model's images, `before` come before those of the corpus.
    """
    if result.bank is None:
        return {}, result.facts
    files = bank_files(result.bank, settings.index)
    if settings.index.kind == "exact":
        return files, result.facts
    queries = _queries_outside(corpus, result.bank, before)
    quality = measured_quality(result.bank, files, settings.index, queries)
    return files, result.facts | asdict(quality)


def _queries_outside(
    corpus: StoredCorpus, bank: MemoryBank, before: int
) -> Float32[np.ndarray, "queries dim"] | None:
    """Return normal patches that are not in the bank, evenly spread; None if all are in it."""
    assert bank.origin is not None, "the method is searched exactly: `exact_because`"
    *grid, _ = corpus.shapes[bank.embedding]
    height, width = grid or (1, 1)
    patches = corpus.images * height * width
    origin = bank.origin - np.array([before, 0, 0])
    of_corpus = origin[origin[:, 0] >= 0]
    taken = np.ravel_multi_index(tuple(of_corpus.T), (corpus.images, height, width))
    candidates = np.arange(0, patches, max(1, patches // MEASURED_PATCHES))
    left = np.setdiff1d(candidates, taken)
    return gather_rows(corpus, left, bank.embedding) if len(left) else None
