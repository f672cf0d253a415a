"""fit --update: new images/ of good parts join a model that is there.

Only images that the model does not know are embedded: their fragments' embeddings lie in the run's
folder until the step is published, so that a run that was stopped goes on.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs import options
from jobs.console import log, percent
from jobs.driving import Tally
from jobs.heartbeat import beating
from jobs.standing import (
    Base,
    Chosen,
    Outcome,
    broken_in,
    embed,
    open_base,
    publish_step,
    say_failed,
)
from pipeline.cluster.runner import Runner
from pipeline.config import Settings, digest
from pipeline.errors import ConfigError, WorkersLost
from pipeline.lake import models, runs
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment
from pipeline.lake.listing import open_lake
from pipeline.lake.runs import Run
from pipeline.lake.where import read_where
from pipeline.stages.plan import output_digest, plan_fragments, training_selections
from pipeline.stages.preflight import Preflight
from pipeline.stages.selection import Selection, select_rows
from pipeline.stages.source import Source
from pipeline.stages.update import Standing, update_group

# Each reads a few columns, or a list of images, behind a latency of tens of ms on an object store.
_READ_AT_ONCE = 16


def run(
    images: str,
    model: str,
    settings: Settings,
    execution: options.Execution,
    *,
    where: str | None = None,
) -> models.Manifest:
    """Add the good images of a lake that the model does not know; return the manifest.

    Raises:
        ConfigError: if the method cannot, or the settings contradict the model.
        FragmentsFailed: if a fragment or a group failed; the other groups are published.
    """
    storage = settings.storage
    lake, target = open_lake(images, storage), Folder.at(model, storage)
    weights = options.weight_files(settings.backbone.weights, storage)
    preflight = Preflight([lake], [target], weights)
    preflight.here()
    base = open_base(target, settings)
    groups = list(base.manifest.groups)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        standing = dict(zip(groups, pool.map(base.standing, groups), strict=True))
    chosen = _choose(lake, base, standing, where)
    if not chosen.fragments:
        log.info("%s has no image that %s does not know", lake.root, base.target.root)
        return base.manifest
    base.require_weights()
    record = _record(lake, base, chosen, where)
    job = runs.begin(base.target, record, chosen.fragments)
    with beating(job) as heart:
        with execution.start(base.settings.workers, preflight) as runner:
            tally = embed(base, heart, chosen, execution.threads, runner)
            outcome = _update_groups(base, standing, chosen, (job, tally, runner))
        return publish_step(base, job, tally, chosen.fragments, outcome)


def _choose(
    lake: Folder, base: Base, standing: Mapping[str, Standing], where: str | None
) -> Chosen:
    """Return the fragments that hold images which the model does not know, and those images."""
    settings = base.settings
    source = Source(lake, settings.columns, settings.image, base.geometry, read_where(where))
    plan = plan_fragments(lake, settings, where).sound()
    for group in plan.groups:
        if group not in standing:
            log.warning("%s has no group '%s': it is left out; fit it", base.target.root, group)
    known_groups = pc.is_in(plan.kept.table.column("group"), value_set=pa.array(list(standing)))
    fragments = plan.kept.only(known_groups)
    selections = training_selections(lake, fragments, settings.columns)
    known = {group: one.members.known for group, one in standing.items()}
    find = partial(_unknown, source, selections, known)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        rows = list(pool.map(find, fragments))
    # What is unknown depends on who is in the model, and so do the keys.
    state = digest({"model": _state(base, standing), "output": output_digest(settings)})
    keyed = fragments.keyed({}, state)
    taken = {f: found for f, found in zip(keyed.keys.to_pylist(), rows, strict=True) if found}
    new, known_images = sum(map(len, rows)), sum(one.members.count for one in standing.values())
    log.info("%d images join %d in %s", new, known_images, base.target.root)
    chosen = keyed.with_keys(pa.array(list(taken), pa.string()))
    return Chosen(source, selections, chosen, taken)


def _unknown(
    source: Source,
    selections: Mapping[str, Selection],
    known: Mapping[str, frozenset[str]],
    fragment: Fragment,
) -> list[int]:
    rows = select_rows(source.read_names(fragment), selections[fragment.group])
    names = zip(
        rows.column("image_id").to_pylist(), rows.column("source_row").to_pylist(), strict=True
    )
    return [row for image_id, row in names if image_id not in known[fragment.group]]


def _state(base: Base, standing: Mapping[str, Standing]) -> dict[str, object]:
    groups = {
        group: [one.record.digest, sorted(file.sha256 for file in one.record.files)]
        for group, one in standing.items()
    }
    return {"run": base.manifest.run, "groups": groups}


def _record(lake: Folder, base: Base, chosen: Chosen, where: str | None) -> runs.RunRecord:
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


def _update_groups(
    base: Base,
    standing: Mapping[str, Standing],
    chosen: Chosen,
    done: tuple[Run, Tally, Runner],
) -> Outcome:
    job, tally, runner = done
    records: dict[str, models.GroupRecord] = {}
    changes: dict[str, models.Change] = {}
    failed: dict[str, str] = {}
    for group in chosen.fragments.groups:
        fragments = chosen.fragments.of_group(group)
        broken = broken_in(fragments, tally)
        if broken:
            failed[group] = say_failed(group, f"fragments {broken} failed")
            continue
        corpus = base.corpus(job, fragments, runner)
        if corpus.images == 0:
            log.warning("group '%s': no new image can be used: %s", group, corpus.unusable)
            continue
        before = standing[group]
        try:
            with percent(f"update of {group}") as tell:
                records[group] = update_group(base.method, before, corpus, base.step, tell)
        except (ConfigError, WorkersLost) as error:
            failed[group] = say_failed(group, str(error))
            continue
        changes[group] = models.Change(
            parent=before.record.digest,
            digest=records[group].digest,
            added=corpus.images,
            withdrawn=0,
        )
    return Outcome(records, changes, failed)
