"""fit --update --reviews: what people decided on images is learnt.

Two steps of the lineage, each as an update or a withdrawal is one: first images of the model that
proved defective leave it, then images that were called anomalous and are good join it. A command
that was stopped after the first goes on with the second, and one that is repeated finds nothing
new.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver import update
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.lineage import PublishedModel, open_base
from patchlake.pipeline.driver.withdraw import LeavingImages, leave
from patchlake.pipeline.groups.files import load_images
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.groups.reviewed import (
    ReviewCounts,
    ReviewedMembers,
    count_reviews,
    is_false_alarm,
)
from patchlake.pipeline.lake.plan import plan_fragments
from patchlake.pipeline.lake.reviewed import ReviewedRows, reviewed
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.reviews.decided import decided
from patchlake.pipeline.reviews.given import read_given
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.tables import DECIDED
from patchlake.pipeline.where.condition import read_where

log = logging.getLogger(__name__)

# What finds images, and what was decided: all that a model can learn of reviews.
_COVERED = ("group", "image_id", "root", "source_path", "source_row", "sha256", "verdict")
_KEPT = tuple(name for name in DECIDED.names if name != "regions")


@dataclass(frozen=True)
class Lesson:
    """What reviews say of the images of a lake, and what the lineage notes of them."""

    reviewed: ReviewedRows
    taken: models.ReviewsTaken

    @property
    def decisions(self) -> list[dict[str, object]]:
        """Of every image, a row of schema `DECIDED` without regions."""
        rows: list[dict[str, object]] = self.reviewed.decided.select(_KEPT).to_pylist()
        return rows

    @property
    def wanted(self) -> update.Wanted:
        """The images of the lake that are good, and were called anomalous."""
        rows: dict[str, frozenset[int]] = {}
        for path, some in self.reviewed.rows.items():
            good = frozenset(row for row, one in some.items() if is_false_alarm(one))
            if good:
                rows[path] = good
        return update.Wanted(rows, self.taken)


def run(
    images: str,
    model: str,
    reviews: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
) -> models.Manifest:
    """Let a model learn what reviews say; return the manifest.

    Images that are disputed, or of which nobody is sure, do nothing. An image that has left the
    model does not come back.

    Args:
        images: The lake, from which images join.
        model: The model's folder.
        reviews: A reviews table, or a file of decisions.
        settings: See `pipeline.driver.library`.
        execution: How.
        where: Which rows of the lake may join.

    Raises:
        ConfigError: if there are no reviews, or as `update.run` and `withdraw.run`.
        TableError: if reviews cannot be read.
        FragmentsFailed: if a fragment or a group failed; the other groups are published.
    """
    storage = settings.storage
    lake, target = open_lake(images, storage), Folder.at(model, storage)
    Preflight([lake], [target], [], [Use(lake, "images"), Use(target, "model")]).here()
    base = open_base(target, settings)
    lesson = _read(lake, base, reviews, where)
    _say(lesson)
    while leaving := _leaving(base, lesson.decisions):
        leave(base, leaving, execution, reviews=lesson.taken)
        base = open_base(target, settings)
    wanted = lesson.wanted
    if not wanted.rows:
        return base.manifest
    return update.run(images, model, settings, execution, where=where, wanted=wanted)


def _read(lake: Folder, base: PublishedModel, reviews: str, where: str | None) -> Lesson:
    given = read_given(reviews, base.settings.storage)
    settings = base.settings
    source = Source(lake, settings.columns, settings.image, base.geometry, read_where(where))
    fragments = plan_fragments(lake, settings, where).sound().kept
    found = reviewed(source, fragments, given)
    return Lesson(found, taken_of(reviews, base.target, found.decided))


def taken_of(reviews: str, model: Folder, summed: pa.Table) -> models.ReviewsTaken:
    """Return what a step notes of the reviews that it goes by."""
    rows = summed.select(_COVERED).to_pylist()
    root = Folder.at(reviews, model.storage).root
    return models.ReviewsTaken(folder=root, images=len(rows), digest=digest({"rows": rows}))


def _leaving(
    base: PublishedModel, decisions: Sequence[Mapping[str, object]]
) -> dict[str, LeavingImages]:
    """Return the images of a model that proved defective, by group.

    Where their embeddings are needed, only those from one lake, the first: one step reads one.
    """
    defective = [one for one in decisions if one["verdict"] == "defective"]
    roots = [step.images for step in base.manifest.lineage]
    by_root: dict[str, dict[str, LeavingImages]] = defaultdict(dict)
    ambiguous = 0
    for group in base.manifest.groups:
        fitted = base.group(group)
        members = ReviewedMembers.of(group, fitted.members, roots)
        ambiguous += sum(map(members.is_ambiguous, defective))
        numbers = members.numbers(defective)
        if not len(numbers):
            continue
        if not base.method.leaves_by_embedding:
            by_root[""][group] = LeavingImages(fitted, numbers)
            continue
        of_root = [roots[place.joined] for place in fitted.members.places(numbers)]
        for root in set(of_root):
            some = numbers[[one == root for one in of_root]]
            by_root[root][group] = LeavingImages(fitted, some)
    if not by_root and ambiguous:
        log.warning(
            "%d defective images stay in %s: their image_id is that of several of its images; "
            "withdraw the right ones, or review them with their place",
            ambiguous,
            base.target.root,
        )
    return by_root[min(by_root)] if by_root else {}


def _say(lesson: Lesson) -> None:
    """Log what reviews come to, and which of them say nothing here."""
    verdicts = Counter(lesson.reviewed.decided.column("verdict").to_pylist())
    alarms = sum(map(len, lesson.wanted.rows.values()))
    log.info(
        "%s: %d images are reviewed: %d good (%d of them false alarms of this lake), %d defective, "
        "%d disputed, %d unsure",
        lesson.taken.folder,
        lesson.taken.images,
        *(verdicts["good"], alarms, verdicts["defective"], verdicts["disputed"]),
        verdicts["unsure"],
    )
    lesson.reviewed.say_left_out()


def counts_of(model: Folder, manifest: models.Manifest, reviews: str) -> dict[str, ReviewCounts]:
    """Return what a model has not learnt of reviews, by group.

    Raises:
        ConfigError: if there are no reviews.
        TableError: if they cannot be read.
    """
    summed = decided(read_given(reviews, model.storage)).select(_KEPT)
    roots = [step.images for step in manifest.lineage]
    groups = []
    for group, record in manifest.groups.items():
        images = load_images(model, record)
        if images is not None:
            members = Membership.stored(images)
            groups.append(ReviewedMembers.of(group, members, roots))
    return count_reviews(summed.to_pylist(), groups)
