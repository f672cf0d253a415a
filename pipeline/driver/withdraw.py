"""withdraw: images leave a model, by id."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.drive import Tally
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.heartbeat import beating
from patchlake.pipeline.driver.lineage import (
    ChangedGroup,
    PublishedModel,
    RowsToEmbed,
    change_groups,
    embed,
    open_base,
    publish_step,
    require_embedded,
)
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.membership import ImagePlace
from patchlake.pipeline.groups.update import PublishedGroup, withdraw_group
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.stores import Entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Withdrawal:
    """What is to leave: image_ids, of one group if it is named; and where the images are."""

    image_ids: tuple[str, ...]
    group: str | None = None
    images: str | None = None


def run(
    model: str, withdrawal: Withdrawal, settings: Settings, execution: Execution
) -> models.Manifest:
    """Withdraw images, and return the manifest; images withdrawn before are passed over.

    Raises:
        ConfigError: if an image is not in the model, or in more than one group, or its embedding is
            needed and the file that it was in has changed.
        FragmentsFailed: if a fragment failed; nothing is withdrawn then.
    """
    target = Folder.at(model, settings.storage)
    Preflight([], [target]).here()
    base = open_base(target, settings)
    leaving = _leaving(base, withdrawal)
    _say_leaving(leaving, withdrawal)
    if not leaving:
        log.info("these images were withdrawn from %s before", base.target.root)
        return base.manifest
    return leave(base, leaving, execution, images=withdrawal.images)


@dataclass(frozen=True)
class LeavingImages:
    """A group, and its images that leave it, by their numbers in the model."""

    fitted: PublishedGroup
    numbers: Int64[np.ndarray, " withdrawn"]


def leave(
    base: PublishedModel,
    leaving: Mapping[str, LeavingImages],
    execution: Execution,
    *,
    images: str | None = None,
    reviews: models.ReviewsTaken | None = None,
) -> models.Manifest:
    """Take the step that withdraws images, and return the manifest.

    Args:
        base: The model.
        leaving: The images, by group; one at least of each.
        execution: How.
        images: Where they are, if the table has moved since they joined.
        reviews: Those that say so, if any do.

    Raises: as `run`.
    """
    chosen = _choose(base, leaving, images) if base.method.leaves_by_embedding else None
    record = _record(base, leaving, chosen)
    fragments = chosen.fragments if chosen else Fragments.of([])
    job = runs.begin(base.target, record, fragments)
    with beating(job) as heart:
        if chosen is None:
            tally = Tally()
            outcome = change_groups(leaving, partial(_withdraw, base, leaving, lambda _: None))
            outcome = replace(outcome, reviews=reviews)
            return publish_step(base, job, tally, fragments, outcome)
        base.require_weights()
        preflight = Preflight([chosen.source.images], [base.target])
        execution = execution.chosen(chosen.images)
        with execution.start(base.settings.workers, preflight) as runner:
            tally = embed(base, heart, chosen, execution, runner)

            def corpus(group: str) -> StoredCorpus:
                of_group = chosen.fragments.of_group(group)
                require_embedded(of_group, tally)
                stored = base.corpus(job, of_group, runner)
                return _whole(stored, len(leaving[group].numbers))

            outcome = change_groups(leaving, partial(_withdraw, base, leaving, corpus))
        return publish_step(base, job, tally, fragments, replace(outcome, reviews=reviews))


def _leaving(base: PublishedModel, withdrawal: Withdrawal) -> dict[str, LeavingImages]:
    """Return the images of each group that are to leave."""
    groups = list(base.manifest.groups) if withdrawal.group is None else [withdrawal.group]
    if not set(groups) <= set(base.manifest.groups):
        raise ConfigError(
            f"{base.target.root} has no group '{withdrawal.group}', but "
            f"{list(base.manifest.groups)}"
        )
    fitted = {group: base.group(group) for group in groups}
    for image_id in withdrawal.image_ids:
        holding = [group for group, one in fitted.items() if image_id in one.members.image_ids]
        if not holding:
            raise ConfigError(
                f"no image '{image_id}' was ever in {base.target.root} (groups {groups}); the "
                "images.parquet of each group lists them"
            )
        if len(holding) > 1:
            raise ConfigError(f"groups {holding} have an image '{image_id}' each; name one --group")
    found = {
        group: LeavingImages(one, one.members.numbers_of(withdrawal.image_ids))
        for group, one in fitted.items()
    }
    return {group: leaving for group, leaving in found.items() if len(leaving.numbers)}


def _say_leaving(leaving: Mapping[str, LeavingImages], withdrawal: Withdrawal) -> None:
    """Say it where an image_id is that of several images."""
    for group, one in leaving.items():
        if len(one.numbers) > len(set(withdrawal.image_ids)):
            log.warning(
                "%d images of group '%s' have these %d image_ids; all of them leave",
                len(one.numbers),
                group,
                len(set(withdrawal.image_ids)),
            )


def _choose(
    base: PublishedModel, leaving: Mapping[str, LeavingImages], images: str | None
) -> RowsToEmbed:
    """Return the rows of the images, whose embeddings are needed, in the lake that they are from.

    Raises:
        ConfigError: if they are not where they were, as they were.
    """
    places = {group: one.fitted.members.places(one.numbers) for group, one in leaving.items()}
    every = [place for some in places.values() for place in some]
    roots = sorted({base.manifest.lineage[place.joined].images for place in every})
    if images is None and len(roots) > 1:
        raise ConfigError(f"the images joined from {roots}; withdraw those of one with --images")
    lake = Folder.at(images or roots[0], base.settings.storage)
    columns = base.settings.columns
    source = Source(lake, columns, base.settings.image, base.geometry)
    state = digest({"run": base.manifest.run, "withdraw": _numbers(leaving)})
    entries = [_unchanged(lake, path, every) for path in sorted({p.path for p in every})]
    fragments, rows = [], {}
    planned = plan(lake, base.settings, entries=entries).every
    for fragment, named in zip(planned, source.each_names(planned), strict=True):
        wanted_rows = {p.row for p in places.get(fragment.group, []) if p.path == fragment.path}
        numbers = named.column("source_row").to_pylist()
        taken = [row for row in numbers if row in wanted_rows]
        if taken:
            fragments.append(fragment.keyed(state))
            rows[fragments[-1].key] = taken
    return RowsToEmbed(source, {}, Fragments.of(fragments), rows)


def _unchanged(lake: Folder, path: str, places: Sequence[ImagePlace]) -> Entry:
    """Return the entry of a file. Raises `ConfigError` where it is not that of the fit."""
    versions = sorted({place.version for place in places if place.path == path})
    try:
        entry = lake.entry(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{lake.path(path)} is gone: what its images added to the model cannot be computed; "
            "name where it is now with --images, or fit again"
        ) from None
    if versions != [entry.version]:
        raise ConfigError(
            f"{lake.path(path)} is version {entry.version}, its images joined from "
            f"{' and '.join(versions)}: they "
            "may be others; restore it, or fit again"
        )
    return entry


def _numbers(leaving: Mapping[str, LeavingImages]) -> dict[str, list[int]]:
    return {group: one.numbers.tolist() for group, one in leaving.items()}


def _record(
    base: PublishedModel, leaving: Mapping[str, LeavingImages], chosen: RowsToEmbed | None
) -> runs.RunRecord:
    lake = chosen.source.images.root if chosen else base.manifest.lineage[0].images
    version = digest({"withdraw": base.manifest.run, "numbers": _numbers(leaving), "images": lake})
    return runs.RunRecord(
        run=version[:12],
        verb="withdraw",
        images=lake,
        where=None,
        version=version[:12],
        started_at=runs.now(),
        settings=base.settings,
    )


def _withdraw(
    base: PublishedModel,
    leaving: Mapping[str, LeavingImages],
    corpus_of: Callable[[str], StoredCorpus | None],
    group: str,
) -> ChangedGroup:
    """Take images out of one group; `corpus_of` has their embeddings where those are needed."""
    fitted, numbers = leaving[group].fitted, leaving[group].numbers
    left = withdraw_group(base.method, fitted, numbers, corpus_of(group), base.step)
    change = models.Change(
        parent=fitted.record.digest, digest=left.record.digest, added=0, withdrawn=len(numbers)
    )
    return ChangedGroup(left, change)


def _whole(corpus: StoredCorpus, images: int) -> StoredCorpus:
    """Return the corpus. Raises `ConfigError` if it has not so many images."""
    found = corpus.images if corpus.fragments else 0
    if found != images:
        raise ConfigError(
            f"{found} of {images} images to withdraw can be read where they were"
            f"{f' ({corpus.unusable})' if corpus.fragments else ''}; fit again"
        )
    return corpus
