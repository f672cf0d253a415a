"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial

from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.drive import Tally, drive, half_of_memory
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.heartbeat import Heart, beating
from patchlake.pipeline.driver.members import (
    announce_cost,
    announce_verdicts,
    place_large_banks,
)
from patchlake.pipeline.driver.preview import Preview, measure
from patchlake.pipeline.driver.preview import preview as preview_of
from patchlake.pipeline.driver.retirement import RetiredParts, Retirement
from patchlake.pipeline.driver.scoring import (
    ScoreWork,
    pending_of,
    pipeline_of,
    plan_score,
    superseded_of,
)
from patchlake.pipeline.driver.settings import weight_files
from patchlake.pipeline.driver.summary import list_damaged, require_success, summarise
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.plan import write_cuts
from patchlake.pipeline.lake.trained import write_trained
from patchlake.pipeline.model_store.models import MANIFEST
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.reading.planning import Plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import expiry, parts
from patchlake.pipeline.score_table.ledger import expired_keys
from patchlake.pipeline.shown import counted
from patchlake.pipeline.storage.disk import scratch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use

log = logging.getLogger(__name__)

# Says whether what it is told, in words, is to be done.
Confirm = Callable[[str], bool]


def run(
    images: str,
    model: str | Sequence[str],
    scores: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
    since: datetime | None = None,
    expire: str | None = None,
    restore: str | None = None,
    confirm: Confirm | None = None,
) -> runs.Summary:
    """Score with one model or an ensemble of several, and return the run's summary.

    Args:
        images: Images table.
        model: One model, or several.
        scores: Score table.
        settings: Of what is scored and written.
        execution: Where it runs.
        where: Which fragments are scored.
        since: Files that were written earlier are not looked at.
        expire: Which parts are removed at the end (`score_table.expiry.parse_rule`).
        restore: Which expired parts are scored again (`score_table.expiry.restore`).
        confirm: Is asked before a rule removes every part; without, that needs no consent.

    Raises:
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors.
    """
    retire = Retirement.checked(expire, settings.score.iceberg_table)
    lake, target, models_ = _folders(images, model, scores, settings)
    preflight = Preflight([lake], [target], _files(models_, settings), _roles(lake, target))
    preflight.here()
    target.sweep()
    work = plan_score(lake, models_, settings, where, target, since)
    _agree(retire, target, work, confirm)
    parts.bind_source(target, lake)
    if restore is not None:
        restored = expiry.restore(target, restore)
        log.info("--restore %s: %d expired parts may be scored again", restore, len(restored))
    job = runs.begin(target, work.record, work.plan.kept)
    in_ledger = expired_keys(target, job.record.version)
    list_damaged(job, work.plan.damaged)
    pending = pending_of(target, work, in_ledger)
    execution = execution.chosen(pending.images)
    _announce(lake, target, work, pending)
    with beating(job) as heart:
        earlier = _earlier(target, job, work.plan)
        with execution.start(settings.workers, preflight) as runner:
            # Once it is known that the workers reach what they need.
            write_cuts(target, work.record.settings, work.plan, work.cuts)
            write_trained(target, work.members, work.digests, work.plan.groups)
            tally = _drive(heart, (runner, execution), work, pending)
        tally.earlier, tally.damaged = earlier, work.plan.damaged
        # Files of which `--where` keeps a part are left alone: their other fragments are not new.
        superseded = partial(superseded_of, target, work)
        retired = retire(target, job, superseded, in_ledger)
        already_done = len(work.plan.kept) - len(pending)
        return _finish(target, work, job, tally, retired, already_done)


def preview(
    images: str,
    model: Sequence[str],
    scores: str,
    settings: Settings,
    execution: Execution,
    where: str | None = None,
    since: datetime | None = None,
    *,
    expire: str | None = None,
) -> Preview:
    """Return what `run` would do, and what a sample of it costs; SCORES is only read."""
    retire = Retirement.checked(expire, None)
    lake, target, models_ = _folders(images, model, scores, settings)
    Preflight([lake, target], [], _files(models_, settings), _roles(lake, target)).here()
    work = plan_score(lake, models_, settings, where, target, since)
    parts.require_source(target, lake)
    for reason in work.plan.damaged.values():
        log.warning("%s; it is passed over", reason)
    pending = pending_of(target, work, expired_keys(target, work.record.version))
    announce_cost(work.members, pending, work.digests)
    place = execution.place(pending.images)
    with scratch("patchlake-dry-run-") as path:
        folder = Folder.at(path, settings.storage)
        pipeline = pipeline_of(work, folder, work.record, 1, work.members)
        sample = measure(pending, pipeline, folder)
    found = preview_of("score", (lake, target), work.plan, pending, sample, place)
    expiring = retire.require_names(target, work.plan.every.paths)
    rows = parts.count_rows(target, expiring)
    return replace(found, expiring_parts=tuple(expiring), expiring_images=rows)


def _agree(retire: Retirement, target: Folder, work: ScoreWork, confirm: Confirm | None) -> None:
    """Refuse a rule with unknown names; ask, if somebody can be, before one removes every part."""
    going = retire.require_names(target, work.plan.every.paths)
    if confirm and going and len(going) == sum(1 for _ in parts.every_part(target)):
        what = f"--expire {retire.rule} removes all {len(going)} parts of {target.root}"
        if not confirm(what):
            raise ConfigError(f"{what}: not confirmed, so nothing was done; --yes does not ask")


def _folders(
    images: str, model: str | Sequence[str], scores: str, settings: Settings
) -> tuple[Folder, Folder, list[Folder]]:
    """Return IMAGES, SCORES and the models, which are one or several."""
    named = [model] if isinstance(model, str) else model
    target, *models_ = (Folder.at(one, settings.storage) for one in (scores, *named))
    return open_lake(images, settings.storage), target, models_


def _files(models_: Sequence[Folder], settings: Settings) -> list[tuple[Folder, str]]:
    """Return the files that workers read besides."""
    weights = weight_files(settings.backbone.weights, settings.storage)
    return [*((one, MANIFEST) for one in models_), *weights]


def _announce(lake: Folder, target: Folder, work: ScoreWork, pending: Fragments) -> None:
    """Say what there is to do."""
    kept = work.plan.kept
    log.info(
        "score of %s (%s opened): %s in %s, %d of them done, into %s",
        lake.root,
        counted(work.plan.opened, "files"),
        counted(work.plan.images, "images"),
        counted(len(kept), "fragments"),
        len(kept) - len(pending),
        target.root,
    )
    if kept and not pending:
        log.info("all %d images are done", work.plan.images)
    announce_cost(work.members, pending, work.digests)
    if pending:
        announce_verdicts(work.members, work.verdicts)


def _roles(lake: Folder, target: Folder) -> list[Use]:
    # A model is known by its manifest, which is read anyway.
    return [Use(lake, "images"), Use(target, "scores", is_written=True)]


def _drive(
    heart: Heart, where: tuple[Runner, Execution], work: ScoreWork, pending: Fragments
) -> Tally:
    runner, execution = where
    settings, target = work.record.settings, heart.run.folder
    budget = settings.memory_budget or half_of_memory()
    with ExitStack() as stack:
        members = place_large_banks(work.members, pending.groups, budget, runner, stack)
        pipeline = pipeline_of(work, target, heart.run.record, execution.threads, members)
        return drive(heart, runner, pending.by_group(), pipeline, execution.observer)


def _earlier(target: Folder, job: runs.Run, plan: Plan) -> Counter[str]:
    """Count the rows that earlier starts of this run have written, by status.

    The exit code must not depend on how often the job was killed. Reads the parts where no summary
    tells, which is some 50 ms each on an object store, 16 at a time.
    """
    if job.previous is not None:
        return Counter(job.previous.statuses) + Counter(job.previous.earlier_statuses)
    if not job.is_adopted:
        return Counter()
    done = parts.committed(target, job.record.version).of_plan(plan.kept).to_pylist()
    return parts.count_statuses(target, done, job.record.started_at)


def _finish(
    target: Folder,
    work: ScoreWork,
    job: runs.Run,
    tally: Tally,
    retired: RetiredParts,
    already_done: int,
) -> runs.Summary:
    kept = work.plan.kept
    summary = summarise(
        job,
        tally,
        kept,
        already_done,
        groups=work.digests,
        parts=retired.left(kept),
        removed_parts=retired.removed,
    )
    job.finish(summary)
    # What a worker that was killed has left of a file.
    target.sweep()
    if summary.duplicate_image_ids:
        log.warning(
            "%d image_ids occur more than once in a fragment; all rows are kept, told apart by "
            "source_path and source_row",
            summary.duplicate_image_ids,
        )
    require_success(summary)
    return summary
