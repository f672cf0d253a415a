"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import typer

from jobs import options
from jobs.console import log, say, show_table
from jobs.driving import Tally, drive, half_of_memory, require_success, summarise
from pipeline.cluster.runner import Pipeline, Runner
from pipeline.config import Settings, digest
from pipeline.errors import ConfigError
from pipeline.lake import models, parts, runs
from pipeline.lake.folder import Folder
from pipeline.scores.calibration import Calibration, mean_scale
from pipeline.stages.decode import Decode, Selection, Source
from pipeline.stages.infer import Member, Scorer
from pipeline.stages.models import Holders, load_calibration, shard_starts, verify_group
from pipeline.stages.plan import Plan, keyed, output_digest, plan_fragments
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
    heatmaps: Annotated[
        Literal["all", "anomalous", "none"] | None, typer.Option(help="Sets score.heatmaps.")
    ] = None,
    weights: options.Weights = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "ray",
    address: options.Address = None,
) -> None:
    """Score every image once. What is committed already is skipped."""
    flags = {"score.heatmaps": heatmaps, "backbone.weights": weights}
    settings = options.read_settings(config, assignments, options.nested(flags))
    execution = options.Execution(runner, address)
    run(images, [model, *(others or [])], scores, settings, execution, where=where)


def run(
    images: str,
    model: str | Sequence[str],
    scores: str,
    settings: Settings,
    execution: options.Execution,
    *,
    where: str | None = None,
) -> runs.Summary:
    """Score with one model or an ensemble of several, and return the run's summary.

    Raises:
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors.
    """
    lake, target = Folder.at(images), Folder.at(scores)
    target.sweep()
    named = [model] if isinstance(model, str) else model
    planned = _plan(lake, [Folder.at(one) for one in named], settings, where)
    parts.bind_source(target, lake)
    job = runs.begin(target, planned.record, planned.plan.kept)
    done = parts.committed(target, planned.record.version)
    pending = [fragment for fragment in planned.plan.kept if fragment.key not in done]
    log.info(
        "score of %s: %d images in %d fragments, %d of them done, into %s",
        lake.root,
        planned.plan.images,
        len(planned.plan.kept),
        len(planned.plan.kept) - len(pending),
        target.root,
    )
    with execution.start(settings.workers) as runner, ExitStack() as stack:
        members = _hold_large_banks(planned, settings, runner, stack) if pending else ()
        pipeline = _pipeline(planned, target, job, execution, members)
        tally = drive(runner, job, pending, pipeline)
    return _finish(target, planned, job, tally, already_done=len(planned.plan.kept) - len(pending))


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
    lake: Folder, folders: Sequence[Folder], settings: Settings, where: str | None
) -> _Planned:
    """Check everything that can be wrong with the command, then cut the work."""
    if settings.score.heatmaps == "anomalous":
        raise ConfigError(
            "--heatmaps anomalous needs a calibrated model, which says what is anomalous; "
            "this model has none: use all or none"
        )
    members = _members(folders, settings)
    # The first member's: heatmaps and metrics need one way from the map to the picture.
    fixed = members[0].manifest.geometry
    image = settings.image.model_copy(update={"resize": fixed.resize, "crop": fixed.crop})
    settings = settings.model_copy(
        update={"image": image, "seed": members[0].manifest.settings.seed}
    )
    for member in members:
        member.checked_backbone()
    plan = plan_fragments(lake, settings, where)
    digests = _digests(members)
    for group in plan.groups:
        for member in members:
            if group in member.manifest.groups:
                verify_group(member.model, member.manifest.groups[group])
            else:
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
        run=runs.identify(lake, version, where, [fragment.key for fragment in plan.kept]),
        verb="score",
        images=lake.root,
        where=where,
        version=version,
        started_at=settings.score.scored_at or runs.now(),
        settings=settings,
    )
    source = Source(lake, settings.columns, settings.image, members[0].geometry)
    _announce(plan, members)
    return _Planned(plan, members, digests, source, record)


def _members(folders: Sequence[Folder], settings: Settings) -> list[Member]:
    """Return the models in an order that does not depend on how they were named.

    Raises:
        ConfigError: if they cannot score together.
    """
    members = []
    for folder in folders:
        manifest = models.read_manifest(folder)
        _require_unchanged(settings, manifest)
        weights = settings.backbone.weights or manifest.backbone.weights
        members.append(Member(folder, manifest, weights))
    if len(members) == 1:
        return members
    runs_ = {member.manifest.run for member in members}
    if len(runs_) < len(members):
        raise ConfigError(f"of {len(members)} models two are the same: name each once")
    names = sorted({member.manifest.backbone.name for member in members})
    if settings.backbone.weights and len(names) > 1:
        raise ConfigError(
            f"backbone.weights is one file, the members have backbones {names}: leave it out, "
            "their weights are taken from where they were when they were fitted"
        )
    seen = sorted({str(m.manifest.geometry) for m in members if m.manifest.geometry.crop})
    if seen and len({m.geometry for m in members}) > 1:
        raise ConfigError(
            f"members see different parts of an image ({'; '.join(seen)}, and others): maps can "
            "be joined of equal crops, or of none"
        )
    return sorted(members, key=lambda member: member.manifest.run)


def _digests(members: Sequence[Member]) -> dict[str, str]:
    """Return the digest of each group that all members have."""
    first, *others = (member.manifest.groups for member in members)
    shared = {group: record.digest for group, record in first.items()}
    if not others:
        return shared
    return {
        group: digest({"members": [sha, *(groups[group].digest for groups in others)]})
        for group, sha in shared.items()
        if all(group in groups for groups in others)
    }


def _announce(plan: Plan, members: Sequence[Member]) -> None:
    """Say what a search that is dear will cost, before it begins."""
    for member in members:
        for group in plan.groups:
            record = member.manifest.groups.get(group)
            cost = record.facts.get("gflop_per_image") if record else None
            if isinstance(cost, float):
                images = sum(f.images for f in plan.kept if f.group == group)
                log.info(
                    "%s on group '%s': %.0f GFLOP of search an image, %.1f TFLOP for %d images "
                    "(a core does 50 to 200 GFLOP a second; most of it can be pruned)",
                    member.manifest.method,
                    group,
                    cost,
                    cost * images / 1000,
                    images,
                )


def _require_unchanged(settings: Settings, manifest: models.Manifest) -> None:
    """Refuse settings that the model has fixed otherwise; defaults stand for what it has."""
    fresh = Settings()
    asked: dict[str, tuple[object, object, object]] = {
        "image.resize": (settings.image.resize, fresh.image.resize, manifest.geometry.resize),
        "image.crop": (settings.image.crop, fresh.image.crop, manifest.geometry.crop),
        "backbone.name": (settings.backbone.name, fresh.backbone.name, manifest.backbone.name),
        "backbone.layers": (
            settings.backbone.layers,
            fresh.backbone.layers,
            manifest.backbone.layers,
        ),
        "method.name": (settings.method.name, fresh.method.name, manifest.method),
    }
    for name, value in settings.method.options().items():
        asked[f"method.{name}"] = (value, None, manifest.method_options.get(name))
    for name, (given, default, fitted) in asked.items():
        if given not in (default, fitted):
            raise ConfigError(
                f"{name} is {given!r}, the model was fitted with {fitted!r}; fit again"
            )


def _hold_large_banks(
    planned: _Planned, settings: Settings, runner: Runner, stack: ExitStack
) -> list[Member]:
    """Start, for each bank that exceeds `memory_budget`, the processes that share it."""
    budget = settings.memory_budget or half_of_memory()
    members = []
    for member in planned.members:
        holders: dict[str, Holders] = {}
        for group in planned.plan.groups:
            record = member.manifest.groups.get(group)
            starts = shard_starts(member.model, record, budget) if record else []
            if starts:
                log.info("the bank of group '%s' is spread over %d processes", group, len(starts))
                holders[group] = stack.enter_context(runner.members(starts))
        members.append(replace(member, holders=holders))
    return members


def _pipeline(
    planned: _Planned,
    target: Folder,
    job: runs.Run,
    execution: options.Execution,
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
        source=planned.source,
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
        threads=execution.threads,
    )
    geometries = tuple(dict.fromkeys(member.geometry for member in planned.members))
    scorer = Scorer(
        members=tuple(members),
        geometries=geometries,
        batch_size=settings.batch_size,
        threads=execution.threads,
    )
    decode = Decode(planned.source, without, execution.threads, geometries)
    return Pipeline(decode, scorer, publish)


def _finish(
    target: Folder, planned: _Planned, job: runs.Run, tally: Tally, already_done: int
) -> runs.Summary:
    done = parts.committed(target, job.record.version)
    kept = planned.plan.kept
    # Files of which `--where` keeps a part are left alone: their other fragments are not new.
    removed = parts.remove_superseded(target, planned.plan.every, done)
    summary = summarise(
        job,
        tally,
        kept,
        already_done,
        groups=planned.digests,
        parts=[done[fragment.key] for fragment in kept if fragment.key in done],
        removed_parts=removed,
    )
    job.finish(summary)
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
