"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from jobs import options
from jobs.console import log, say, show_table
from jobs.driving import Tally, drive, half_of_memory, require_success, summarise
from pipeline.cluster.runner import Pipeline, Runner
from pipeline.config import Settings, digest
from pipeline.errors import ConfigError
from pipeline.images.geometry import Geometry
from pipeline.lake import models, parts, runs
from pipeline.lake.folder import Folder
from pipeline.stages.decode import Decode, Selection, Source
from pipeline.stages.infer import Scorer, load_checked_backbone
from pipeline.stages.models import Holders, load_scale, shard_starts, verify_group
from pipeline.stages.plan import Plan, keyed, output_digest, plan_fragments
from pipeline.stages.publish import Publish

_NO_MODEL = "no model"


def score(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A fitted model.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Where the score table goes.")],
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
    run(images, model, scores, settings, options.Execution(runner, address), where=where)


def run(
    images: str,
    model: str,
    scores: str,
    settings: Settings,
    execution: options.Execution,
    *,
    where: str | None = None,
) -> runs.Summary:
    """Score, and return the run's summary.

    Raises:
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors.
    """
    lake, target = Folder.at(images), Folder.at(scores)
    target.sweep()
    planned = _plan(lake, Folder.at(model), settings, where)
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
        holders = _hold_large_banks(planned, settings, runner, stack) if pending else {}
        pipeline = _pipeline(planned, target, job, execution, holders)
        tally = drive(runner, job, pending, pipeline)
    return _finish(target, planned, job, tally, already_done=len(planned.plan.kept) - len(pending))


@dataclass(frozen=True)
class _Planned:
    plan: Plan
    model: Folder
    manifest: models.Manifest
    # Where the weights are now.
    weights: str | None
    source: Source
    record: runs.RunRecord


def _plan(lake: Folder, model: Folder, settings: Settings, where: str | None) -> _Planned:
    """Check everything that can be wrong with the command, then cut the work."""
    if settings.score.heatmaps == "anomalous":
        raise ConfigError(
            "--heatmaps anomalous needs a calibrated model, which says what is anomalous; "
            "this model has none: use all or none"
        )
    manifest = models.read_manifest(model)
    _require_unchanged(settings, manifest)
    fixed = manifest.geometry
    image = settings.image.model_copy(update={"resize": fixed.resize, "crop": fixed.crop})
    settings = settings.model_copy(update={"image": image, "seed": manifest.settings.seed})
    weights = settings.backbone.weights or manifest.backbone.weights
    load_checked_backbone(manifest, weights)
    plan = plan_fragments(lake, settings, where)
    digests = {group: record.digest for group, record in manifest.groups.items()}
    for group in plan.groups:
        if group in manifest.groups:
            verify_group(model, manifest.groups[group])
        else:
            log.warning("the model has no group '%s': its rows get status no_model", group)
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
    geometry = Geometry(fixed.resize, fixed.crop)
    source = Source(lake, settings.columns, settings.image, geometry)
    return _Planned(plan, model, manifest, weights, source, record)


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
) -> dict[str, Holders]:
    """Start, for each group whose bank exceeds `memory_budget`, the processes that share it."""
    holders: dict[str, Holders] = {}
    budget = settings.memory_budget or half_of_memory()
    for group in planned.plan.groups:
        record = planned.manifest.groups.get(group)
        starts = shard_starts(planned.model, record, budget) if record else []
        if starts:
            log.info("the bank of group '%s' is spread over %d processes", group, len(starts))
            holders[group] = stack.enter_context(runner.members(starts))
    return holders


def _pipeline(
    planned: _Planned,
    target: Folder,
    job: runs.Run,
    execution: options.Execution,
    holders: dict[str, Holders],
) -> Pipeline:
    settings = job.record.settings
    groups = {
        group: planned.manifest.groups[group]
        for group in planned.plan.groups
        if group in planned.manifest.groups
    }
    without: dict[str, Selection] = {
        group: "none" for group in planned.plan.groups if group not in groups
    }
    publish = Publish(
        source=planned.source,
        scores=target,
        version=job.record.version,
        scored_at=job.record.started_at,
        heatmaps="none" if settings.score.heatmaps == "none" else "all",
        model_ids={group: record.digest for group, record in groups.items()},
        scales={group: load_scale(planned.model, record) for group, record in groups.items()},
        threads=execution.threads,
    )
    scorer = Scorer(
        model=planned.model,
        manifest=planned.manifest,
        weights=planned.weights,
        batch_size=settings.batch_size,
        threads=execution.threads,
        holders=holders,
    )
    return Pipeline(Decode(planned.source, without, execution.threads), scorer, publish)


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
        groups={group: record.digest for group, record in planned.manifest.groups.items()},
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
