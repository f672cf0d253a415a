"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Literal

import typer

from patchlake.jobs import options
from patchlake.jobs.console import log, say, show_table
from patchlake.jobs.driving import (
    Tally,
    drive,
    half_of_memory,
    list_damaged,
    require_success,
    summarise,
)
from patchlake.jobs.heartbeat import Heart, beating
from patchlake.jobs.members import announce_cost, place_large_banks
from patchlake.jobs.preview import Preview, measure, show
from patchlake.jobs.preview import preview as preview_of
from patchlake.jobs.retirement import Retired, Retirement
from patchlake.jobs.scoring import Planned, pending_of, pipeline_of, plan_score, superseded_of
from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.plan import Plan, read_cuts, write_cuts
from patchlake.pipeline.lake.trained import write_trained
from patchlake.pipeline.model_store.models import MANIFEST
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import expiry as expire_ledger
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.score_table.expiry import expired_keys
from patchlake.pipeline.storage.disk import scratch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use


def score(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A fitted model.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Where the score table goes.")],
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Another model: the scores are those of the ensemble. May repeat."
        ),
    ] = None,
    group: options.OneGroup = None,
    where: options.Where = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS|TIME",
            help="Look only at files that were written in the last days (2d, from midnight UTC) or "
            "since a time (2026-11-22, 2026-11-22T18:00). None is no error.",
        ),
    ] = None,
    heatmaps: Annotated[
        Literal["all", "none"] | None, typer.Option(help="Sets score.heatmaps.")
    ] = None,
    weights: options.Weights = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    iceberg: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOG.NAMESPACE.TABLE",
            help="Publish the parts in this Iceberg table. Sets score.iceberg_table.",
        ),
    ] = None,
    expire: Annotated[
        str | None,
        typer.Option(
            metavar="AGE|EXPR",
            help="Then remove parts, of all versions, and their heatmaps, that are older (90d, "
            "since they were scored) or match (\"dt < '2026-08-27'\", of hive keys, group and "
            "scored_at). They are not scored again. With --dry-run: list them.",
        ),
    ] = None,
    restore: Annotated[
        str | None,
        typer.Option(
            metavar="all|EXPR",
            help="First take parts that have expired (all, or those whose hive keys match) out of "
            "the ledger: they are scored again.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before --expire removes every part.")
    ] = False,
    runner: options.RunnerChoice = "ray",
    address: options.Address = None,
) -> None:
    """Score every image once. What is committed already is skipped."""
    flags = {
        "score.heatmaps": heatmaps,
        "columns.one_group": group,
        "backbone.weights": weights,
        "score.iceberg_table": iceberg,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    named = [model, *(others or [])]
    options.require_dry_run(as_json=as_json, dry_run=dry_run)
    written = None if since is None else options.parse_since(since, runs.now())
    if dry_run and restore is not None:
        raise ConfigError("--restore changes the ledger: it cannot be joined with --dry-run")
    if dry_run:
        found = preview(images, named, scores, settings, where, written, expire=expire)
        show(found, as_json=as_json)
        return
    execution = options.Execution(runner, address)
    run(
        images,
        named,
        scores,
        settings,
        execution,
        where=where,
        since=written,
        expire=expire,
        restore=restore,
        may_ask=not yes and sys.stdin.isatty(),
    )


def run(
    images: str,
    model: str | Sequence[str],
    scores: str,
    settings: Settings,
    execution: options.Execution,
    *,
    where: str | None = None,
    since: datetime | None = None,
    expire: str | None = None,
    restore: str | None = None,
    may_ask: bool = False,
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
        may_ask: Ask on the terminal before a rule removes every part.

    Raises:
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors.
    """
    retire = Retirement.checked(expire, settings.score.iceberg_table)
    lake, target, models_ = _folders(images, model, scores, settings)
    weights = options.weight_files(settings.backbone.weights, settings.storage)
    files = [*((one, MANIFEST) for one in models_), *weights]
    preflight = Preflight([lake], [target], files, _roles(lake, target))
    preflight.here()
    target.sweep()
    cuts = read_cuts(target, settings)
    planned = plan_score(lake, models_, settings, where, cuts, since)
    _agree(retire, target, planned, may_ask=may_ask)
    parts.bind_source(target, lake)
    if restore is not None:
        restored = expire_ledger.restore(target, restore)
        log.info("--restore %s: %d expired parts may be scored again", restore, len(restored))
    job = runs.begin(target, planned.record, planned.plan.kept)
    in_ledger = expired_keys(target, job.record.version)
    list_damaged(job, planned.plan.damaged)
    pending = pending_of(target, planned, in_ledger)
    already_done = len(planned.plan.kept) - len(pending)
    log.info(
        "score of %s (%d files opened): %d images in %d fragments, %d of them done, into %s",
        lake.root,
        planned.plan.opened,
        planned.plan.images,
        len(planned.plan.kept),
        already_done,
        target.root,
    )
    announce_cost(planned.members, pending, planned.digests)
    with beating(job) as heart:
        earlier = _earlier(target, job, planned.plan)
        with execution.start(settings.workers, preflight) as runner:
            # Once it is known that the workers reach what they need.
            write_cuts(target, settings, planned.plan, cuts)
            write_trained(target, planned.members, planned.digests, planned.plan.groups)
            tally = _drive(heart, runner, planned, pending, execution.threads)
        tally.earlier, tally.damaged = earlier, planned.plan.damaged
        # Files of which `--where` keeps a part are left alone: their other fragments are not new.
        superseded = partial(superseded_of, target, planned)
        retired = retire(target, job, superseded, in_ledger)
        return _finish(target, planned, job, tally, retired, already_done)


def preview(
    images: str,
    model: Sequence[str],
    scores: str,
    settings: Settings,
    where: str | None = None,
    since: datetime | None = None,
    *,
    expire: str | None = None,
) -> Preview:
    """Return what `run` would do, and what a sample of it costs; SCORES is only read."""
    retire = Retirement.checked(expire, None)
    lake, target, models_ = _folders(images, model, scores, settings)
    weights = options.weight_files(settings.backbone.weights, settings.storage)
    files = [*((one, MANIFEST) for one in models_), *weights]
    Preflight([lake, target], [], files, _roles(lake, target)).here()
    planned = plan_score(lake, models_, settings, where, read_cuts(target, settings), since)
    parts.require_source(target, lake)
    for reason in planned.plan.damaged.values():
        log.warning("%s; it is passed over", reason)
    pending = pending_of(target, planned, expired_keys(target, planned.record.version))
    announce_cost(planned.members, pending, planned.digests)
    with scratch("patchlake-dry-run-") as place:
        folder = Folder.at(place, settings.storage)
        pipeline = pipeline_of(planned, folder, planned.record, 1, planned.members)
        sample = measure(pending, pipeline, folder)
    found = preview_of("score", (lake, target), planned.plan, pending, sample)
    expiring = retire.require_names(target, planned.plan.every.paths)
    rows = parts.count_rows(target, expiring)
    return replace(found, expiring_parts=tuple(expiring), expiring_images=rows)


def _agree(retire: Retirement, target: Folder, planned: Planned, *, may_ask: bool) -> None:
    """Refuse a rule with unknown names; ask, on a terminal, before one removes every part."""
    going = retire.require_names(target, planned.plan.every.paths)
    if may_ask and going and len(going) == sum(1 for _ in parts.every_part(target)):
        told = f"--expire {retire.rule} removes all {len(going)} parts of {target.root}"
        if not _confirmed(f"{told}; go on?"):
            raise ConfigError(f"{told}: not confirmed, so nothing was done; --yes does not ask")


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:
        # The end of what is typed.
        return False


def _folders(
    images: str, model: str | Sequence[str], scores: str, settings: Settings
) -> tuple[Folder, Folder, list[Folder]]:
    """Return IMAGES, SCORES and the models, which are one or several."""
    named = [model] if isinstance(model, str) else model
    target, *models_ = (Folder.at(one, settings.storage) for one in (scores, *named))
    return open_lake(images, settings.storage), target, models_


def _roles(lake: Folder, target: Folder) -> list[Use]:
    # A model is known by its manifest, which is read anyway.
    return [Use(lake, "images"), Use(target, "scores", is_written=True)]


def _drive(
    heart: Heart, runner: Runner, planned: Planned, pending: Fragments, threads: int
) -> Tally:
    settings, target = planned.record.settings, heart.run.folder
    budget = settings.memory_budget or half_of_memory()
    with ExitStack() as stack:
        members = place_large_banks(planned.members, pending.groups, budget, runner, stack)
        pipeline = pipeline_of(planned, target, heart.run.record, threads, members)
        return drive(heart, runner, pending.by_group(), pipeline)


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
    planned: Planned,
    job: runs.Run,
    tally: Tally,
    retired: Retired,
    already_done: int,
) -> runs.Summary:
    kept = planned.plan.kept
    summary = summarise(
        job,
        tally,
        kept,
        already_done,
        groups=planned.digests,
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
    counted = [[status, str(count)] for status, count in summary.statuses.items()]
    show_table(
        f"scored {sum(summary.statuses.values())} of {summary.images} images",
        ["status", "images"],
        counted,
    )
    say(f"{target.path(f'version={job.record.version}')}/**/*.parquet")
    require_success(summary)
    return summary
