"""fit --update: new images/ of good parts join a model that is there.

Only images that the model does not know are embedded: their fragments' embeddings lie in the run's
folder until the step is published, so that a run that was stopped goes on.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.changes import say_changed
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
from patchlake.pipeline.driver.observer import Observer, fraction
from patchlake.pipeline.driver.settings import weight_files
from patchlake.pipeline.driver.shapes import fitting_fragments
from patchlake.pipeline.driver.training import choose_rows
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.membership import Known
from patchlake.pipeline.groups.update import Joining, PublishedGroup, update_group
from patchlake.pipeline.lake.plan import output_digest, plan_fragments
from patchlake.pipeline.lake.selection import Selection, select_rows
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.trained import checksums, is_known
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.where.condition import read_where

log = logging.getLogger(__name__)

# Each reads a few columns, or a list of images, behind a latency of tens of ms on an object store.
_READ_AT_ONCE = 16
# Fragments whose images are held at the same time.
_IMAGES_AT_ONCE = 4


@dataclass(frozen=True)
class Wanted:
    """Images that people decided to be good, whatever the lake says of them."""

    # Path -> rows in that file.
    rows: Mapping[str, frozenset[int]]
    reviews: models.ReviewsTaken


def run(
    images: str,
    model: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
    wanted: Wanted | None = None,
) -> models.Manifest:
    """Add the good images of a lake that the model does not know; return the manifest.

    Args:
        images: The lake.
        model: The model's folder.
        settings: See `pipeline.driver.library`.
        execution: How.
        where: Which rows count.
        wanted: Only these join; without, those that the lake says are good and to train on.

    Raises:
        ConfigError: if the method cannot, or the settings contradict the model.
        FragmentsFailed: if a fragment or a group failed; the other groups are published.
    """
    storage = settings.storage
    lake, target = open_lake(images, storage), Folder.at(model, storage)
    weights = weight_files(settings.backbone.weights, storage)
    roles = [Use(lake, "images"), Use(target, "model", is_written=True)]
    preflight = Preflight([lake], [target], weights, roles)
    preflight.here()
    base = open_base(target, settings)
    say_changed(base.target, base.manifest, base.settings.columns)
    groups = list(base.manifest.groups)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        fitted = dict(zip(groups, pool.map(base.group, groups), strict=True))
    chosen = _choose(lake, base, fitted, where, wanted)
    if not chosen.fragments:
        log.info("%s has no image that %s does not know", lake.root, base.target.root)
        return base.manifest
    base.require_weights()
    execution = execution.chosen(chosen.images)
    record = _record(lake, base, chosen, where)
    job = runs.begin(base.target, record, chosen.fragments)
    with beating(job) as heart:
        with execution.start(base.settings.workers, preflight) as runner:
            tally = embed(base, heart, chosen, execution, runner)

            def update(group: str) -> ChangedGroup | None:
                fragments = chosen.fragments.of_group(group)
                require_embedded(fragments, tally)
                corpus = base.corpus(job, fragments, runner)
                by_score = wanted is not None
                return _update(base, fitted[group], corpus, execution.observer, by_score=by_score)

            outcome = change_groups(chosen.fragments.groups, update)
            outcome = replace(outcome, reviews=wanted.reviews if wanted else None)
        return publish_step(base, job, tally, chosen.fragments, outcome)


def _choose(
    lake: Folder,
    base: PublishedModel,
    fitted: Mapping[str, PublishedGroup],
    where: str | None,
    wanted: Wanted | None,
) -> RowsToEmbed:
    """Return the fragments that hold images which the model does not know, and those images."""
    settings = fitting_fragments(base.settings, [base.geometry], list(fitted), base.rotations)
    source = Source(lake, settings.columns, settings.image, base.geometry, read_where(where))
    plan = plan_fragments(lake, settings, where).sound()
    kept = plan.kept
    if wanted is not None:
        paths = pa.array(list(wanted.rows), pa.string())
        kept = kept.only(pc.is_in(kept.table.column("path"), value_set=paths))
    for group in kept.groups:
        if group not in fitted:
            log.warning("%s has no group '%s': it is left out; fit it", base.target.root, group)
    known_groups = pc.is_in(kept.table.column("group"), value_set=pa.array(list(fitted)))
    fragments = kept.only(known_groups)
    selections = {} if wanted else choose_rows(source, fragments, settings.fit_on, is_update=True)
    select = partial(_selected, selections, source, wanted)
    roots = [step.images for step in base.manifest.lineage]
    known = {group: one.members.known(roots, lake.root) for group, one in fitted.items()}
    judge = partial(_by_columns, source, known)
    # Before the pool, which would go through all that it has been given before it tells an error.
    named = list(map(select, fragments, source.each_names(fragments)))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        by_columns = list(pool.map(judge, fragments, named))
    with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
        found = list(pool.map(partial(_by_content, source, known), fragments, by_columns))
    # What is unknown depends on who is in the model, on what labels mean and on who was reviewed,
    # and so do the keys.
    state = {
        "model": _state(base, fitted),
        "output": output_digest(settings),
        "vocabulary": settings.columns.vocabulary,
    }
    if wanted is not None:
        state["rows"] = {path: sorted(rows) for path, rows in sorted(wanted.rows.items())}
    keyed = fragments.keyed({}, digest(state))
    keys = keyed.keys.to_pylist()
    taken = {key: one.new for key, one in zip(keys, found, strict=True) if one.new}
    _say(base, found, sum(one.members.count for one in fitted.values()))
    chosen = keyed.with_keys(pa.array(list(taken), pa.string()))
    return RowsToEmbed(source, selections, chosen, taken)


def _selected(
    selections: Mapping[str, Selection],
    source: Source,
    wanted: Wanted | None,
    fragment: Fragment,
    named: pa.Table,
) -> pa.Table:
    """Return the rows of a fragment that may join."""
    if wanted is None:
        return select_rows(named, selections[fragment.group], source.columns)
    rows = pa.array(sorted(wanted.rows[fragment.path]), pa.int64())
    return named.filter(pc.is_in(named.column("source_row"), value_set=rows))


@dataclass(frozen=True)
class _Recognition:
    """Rows of a fragment, numbered in the file: new ones, and how many others are known by what."""

    new: list[int]
    by_place: int
    by_content: int
    by_id: int
    # Only their content can tell: their image_id is known, or the lake keeps no checksum of them.
    unsure: list[int]


def _by_columns(
    source: Source, known: Mapping[str, Known], fragment: Fragment, rows: pa.Table
) -> _Recognition:
    """Tell what columns can tell: the place, the id, and a checksum that the lake keeps."""
    of_group = known[fragment.group]
    here = of_group.at(fragment.path, fragment.version)
    numbers = rows.column("source_row").to_pylist()
    elsewhere = any(number not in here for number in numbers)
    sha256 = checksums(source, fragment, numbers) if elsewhere else [None] * len(numbers)
    found: dict[str, list[int]] = {name: [] for name in ("place", "content", "id", "unsure", "new")}
    images = zip(numbers, rows.column("image_id").to_pylist(), sha256, strict=True)
    for number, image_id, checksum in images:
        if number in here:
            what = "place"
        elif checksum in of_group.contents:
            what = "content"
        elif image_id in of_group.unnoted:
            what = "id"
        else:
            is_unsure = image_id in of_group.image_ids or checksum is None
            what = "unsure" if is_unsure else "new"
        found[what].append(number)
    place, content, by_id = (len(found[name]) for name in ("place", "content", "id"))
    return _Recognition(found["new"], place, content, by_id, found["unsure"])


def _by_content(
    source: Source, known: Mapping[str, Known], fragment: Fragment, so_far: _Recognition
) -> _Recognition:
    """Tell the rest, by reading the images."""
    if not so_far.unsure:
        return so_far
    rows = source.read(fragment)
    unsure = pa.array(so_far.unsure, pa.int64())
    rows = rows.filter(pc.is_in(rows.column("source_row"), value_set=unsure))
    is_same = is_known(known[fragment.group], source, fragment, rows)
    numbers = rows.column("source_row").to_pylist()
    new = [number for number, same in zip(numbers, is_same, strict=True) if not same]
    return replace(
        so_far,
        new=sorted([*so_far.new, *new]),
        by_content=so_far.by_content + len(numbers) - len(new),
        unsure=[],
    )


def _say(base: PublishedModel, found: Sequence[_Recognition], members: int) -> None:
    place, content, by_id = (
        sum(getattr(one, name) for one in found) for name in ("by_place", "by_content", "by_id")
    )
    log.info(
        "%d new images join %d in %s; %d known ones are passed over (%d by place, %d by content%s)",
        sum(len(one.new) for one in found),
        members,
        base.target.root,
        place + content + by_id,
        place,
        content,
        f", {by_id} by image_id alone, as the model is older than its images' checksums"
        if by_id
        else "",
    )


def _state(base: PublishedModel, fitted: Mapping[str, PublishedGroup]) -> dict[str, object]:
    groups = {
        group: [one.record.digest, sorted(file.sha256 for file in one.record.files)]
        for group, one in fitted.items()
    }
    return {"run": base.manifest.run, "groups": groups}


def _record(
    lake: Folder, base: PublishedModel, chosen: RowsToEmbed, where: str | None
) -> runs.RunRecord:
    version = digest({"update": base.manifest.run})
    return runs.RunRecord(
        run=runs.identify(lake, version, where, chosen.fragments),
        verb="update",
        images=lake.root,
        where=where,
        version=version[:12],
        started_at=runs.now(),
        settings=base.settings,
    )


def _update(
    base: PublishedModel,
    before: PublishedGroup,
    corpus: StoredCorpus,
    observer: Observer,
    *,
    by_score: bool,
) -> ChangedGroup | None:
    """Let the images of a corpus join a group; None where none of them can be used."""
    if corpus.images == 0:
        log.warning("group '%s': no new image can be used: %s", before.group, corpus.unusable)
        return None
    with fraction(observer, f"update of {before.group}") as on_progress:
        joining = Joining(base.step, by_score)
        updated = update_group(base.method, before, corpus, joining, on_progress)
    digest_ = updated.record.digest
    change = models.Change(
        parent=before.record.digest, digest=digest_, added=corpus.images, withdrawn=0
    )
    return ChangedGroup(updated, change)
