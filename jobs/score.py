"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import typer

from jobs import options
from jobs.console import log, say, show_table
from jobs.driving import Tally, drive, half_of_memory, models_budget, require_success, summarise
from jobs.heartbeat import beating
from jobs.members import announce_cost, group_digests, hold_large_banks, read_members
from jobs.preview import Preview, measure, show
from jobs.preview import preview as preview_of
from jobs.retirement import Retirement
from pipeline.cluster.runner import Pipeline
from pipeline.config import Settings, digest
from pipeline.errors import ConfigError
from pipeline.lake import parts, runs
from pipeline.lake.expiry import expired_keys
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragments
from pipeline.lake.models import MANIFEST
from pipeline.scores.calibration import Calibration, mean_scale
from pipeline.stages.decode import Decode, Selection, Source
from pipeline.stages.infer import Member, Scorer
from pipeline.stages.models import load_calibration, verify_groups
from pipeline.stages.plan import (
    Plan,
    keyed,
    output_digest,
    plan_fragments,
    read_cuts,
    write_cuts,
)
from pipeline.stages.preflight import Preflight
from pipeline.stages.publish import Publish

_NO_MODEL = "no model"


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
        Literal["all", "anomalous", "none"] | None, typer.Option(help="Sets score.heatmaps.")
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
            "since they were scored) or match (\"dt < '2026-08-27'\"). They are not scored again.",
        ),
    ] = None,
    runner: options.RunnerChoice = "ray",
    address: options.Address = None,
) -> None:
    """Score every image once. What is committed already is skipped."""
    flags = {
        "score.heatmaps": heatmaps,
        "backbone.weights": weights,
        "score.iceberg_table": iceberg,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    named = [model, *(others or [])]
    options.require_dry_run(as_json=as_json, dry_run=dry_run)
    written = None if since is None else options.parse_since(since, runs.now())
    if dry_run:
        show(preview(images, named, scores, settings, where, written), as_json=as_json)
        return
    execution = options.Execution(runner, address)
    run(images, named, scores, settings, execution, where=where, since=written, expire=expire)


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
        expire: Which parts are removed at the end (`lake.expiry.parse_rule`).

    Raises:
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors.
    """
    retire = Retirement.checked(expire, settings.score.iceberg_table)
    storage = settings.storage
    lake, target = Folder.at(images, storage), Folder.at(scores, storage)
    named = [model] if isinstance(model, str) else model
    models_ = [Folder.at(one, storage) for one in named]
    weights = options.weight_files(settings.backbone.weights, storage)
    preflight = Preflight([lake], [target], [*((one, MANIFEST) for one in models_), *weights])
    preflight.here()
    target.sweep()
    cuts = read_cuts(target, settings)
    planned = _plan(lake, models_, settings, where, cuts, since)
    parts.bind_source(target, lake)
    is_whole = where is None and since is None
    write_cuts(target, settings, planned.plan, cuts, is_whole=is_whole)
    job = runs.begin(target, planned.record, planned.plan.kept)
    pending = _pending(target, planned)
    log.info(
        "score of %s: %d images in %d fragments, %d of them done, into %s",
        lake.root,
        planned.plan.images,
        len(planned.plan.kept),
        len(planned.plan.kept) - len(pending),
        target.root,
    )
    with beating(job) as heart:
        earlier = _earlier(target, job, planned.plan)
        with execution.start(settings.workers, preflight) as runner, ExitStack() as stack:
            budget = settings.memory_budget or half_of_memory()
            members = hold_large_banks(planned.members, pending.groups, budget, runner, stack)
            pipeline = _pipeline(planned, target, job, execution.threads, members)
            tally = drive(heart, runner, pending.by_group(), pipeline)
        tally.earlier = earlier
        done_before = len(planned.plan.kept) - len(pending)
        return _finish(target, planned, job, tally, retire, already_done=done_before)


def preview(
    images: str,
    model: Sequence[str],
    scores: str,
    settings: Settings,
    where: str | None = None,
    since: datetime | None = None,
) -> Preview:
    """Return what `run` would do, and what a sample of it costs; SCORES is only read."""
    storage = settings.storage
    lake, target = Folder.at(images, storage), Folder.at(scores, storage)
    models_ = [Folder.at(one, storage) for one in model]
    weights = options.weight_files(settings.backbone.weights, storage)
    Preflight([lake, target], [], [*((one, MANIFEST) for one in models_), *weights]).here()
    planned = _plan(lake, models_, settings, where, read_cuts(target, settings), since)
    parts.require_source(target, lake)
    pending = _pending(target, planned)
    with tempfile.TemporaryDirectory(prefix="patchlake-dry-run-") as scratch:
        folder = Folder.at(scratch, storage)
        pipeline = _pipeline(planned, folder, runs.Run(folder, planned.record), 1, planned.members)
        sample = measure(pending, pipeline, folder)
    return preview_of("score", (lake, target), planned.plan, pending, sample)


@dataclass(frozen=True)
class _Planned:
    plan: Plan
    members: Sequence[Member]
    # Group -> digest of its model, of the groups that every member has.
    digests: Mapping[str, str]
    source: Source
    record: runs.RunRecord

    def calibrations(self, group: str) -> list[Calibration]:
        """Return each member's."""
        return [load_calibration(m.model, m.manifest.groups[group]) for m in self.members]


def _plan(
    lake: Folder,
    folders: Sequence[Folder],
    settings: Settings,
    where: str | None,
    cuts: Fragments,
    since: datetime | None,
) -> _Planned:
    """Check everything that can be wrong with the command, then cut the work."""
    if settings.score.heatmaps == "anomalous":
        raise ConfigError(
            "--heatmaps anomalous needs a calibrated model, which says what is anomalous; "
            "this model has none: use all or none"
        )
    members = read_members(folders, settings)
    # The first member's: heatmaps and metrics need one way from the map to the picture.
    fixed = members[0].manifest.geometry
    image = settings.image.model_copy(update={"resize": fixed.resize, "crop": fixed.crop})
    settings = settings.model_copy(
        update={"image": image, "seed": members[0].manifest.settings.seed}
    )
    for member in members:
        member.checked_backbone()
    plan = plan_fragments(lake, settings, where, cuts, since)
    digests = group_digests(members)
    for member in members:
        of_member = member.manifest.groups
        verify_groups(member.model, [of_member[g] for g in plan.groups if g in of_member])
        for group in plan.groups:
            if group not in of_member:
                log.warning(
                    "%s has no group '%s': its rows get status no_model", member.model.root, group
                )
    output = output_digest(settings)
    version = digest({"groups": digests, "output": output})[:12]
    plan = keyed(
        plan,
        {group: digest({"model": sha, "output": output}) for group, sha in digests.items()},
        otherwise=digest({"model": _NO_MODEL, "output": output}),
    )
    record = runs.RunRecord(
        run=runs.identify(lake, version, where, plan.kept),
        verb="score",
        images=lake.root,
        where=where,
        version=version,
        started_at=settings.score.scored_at or runs.now(),
        settings=settings,
    )
    source = Source(lake, settings.columns, settings.image, members[0].geometry)
    announce_cost(plan, members)
    return _Planned(plan, members, digests, source, record)


def _pending(target: Folder, planned: _Planned) -> Fragments:
    """Return what has neither a part nor an entry in the ledger."""
    version = planned.record.version
    without = planned.plan.kept.without_keys(parts.committed(target, version).sorted_keys)
    return without.without_keys(expired_keys(target, version))


def _pipeline(
    planned: _Planned,
    target: Folder,
    job: runs.Run,
    threads: int,
    members: Sequence[Member],
) -> Pipeline:
    settings = job.record.settings
    groups = [group for group in planned.plan.groups if group in planned.digests]
    without: dict[str, Selection] = {
        group: "none" for group in planned.plan.groups if group not in groups
    }
    calibrations = {group: planned.calibrations(group) for group in groups}
    scales = {
        group: some[0].scale if len(some) == 1 else mean_scale(some)
        for group, some in calibrations.items()
    }
    thresholds = {group: some[0].threshold for group, some in calibrations.items()}
    publish = Publish(
        geometry=planned.source.geometry,
        scores=target,
        version=job.record.version,
        scored_at=job.record.started_at,
        heatmaps="none" if settings.score.heatmaps == "none" else "all",
        model_ids={group: planned.digests[group] for group in groups},
        scales={group: scale for group, scale in scales.items() if scale},
        # What is anomalous to one member says nothing of a mean of several.
        thresholds={
            group: threshold
            for group, threshold in thresholds.items()
            if threshold is not None and len(planned.members) == 1
        },
        threads=threads,
    )
    geometries = tuple(dict.fromkeys(member.geometry for member in planned.members))
    scorer = Scorer(
        members=tuple(members),
        geometries=geometries,
        batch_size=settings.batch_size,
        models_budget=models_budget(settings),
        threads=threads,
    )
    pictures = publish.heatmaps == "all" and bool(publish.scales)
    attempts = settings.fragment_attempts
    decode = Decode(planned.source, without, threads, geometries, attempts, pictures)
    return Pipeline(decode, scorer, publish)


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
    planned: _Planned,
    job: runs.Run,
    tally: Tally,
    retire: Retirement,
    already_done: int,
) -> runs.Summary:
    # Files of which `--where` keeps a part are left alone: their other fragments are not new.
    removed = retire(target, job, planned.plan.every)
    done = parts.committed(target, job.record.version)
    kept = planned.plan.kept
    summary = summarise(
        job,
        tally,
        kept,
        already_done,
        groups=planned.digests,
        parts=done.of_plan(kept).to_pylist(),
        removed_parts=removed,
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
