"""fit: images/ of good parts -> model/."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from patchlake.pipeline.cluster.runner import Pipeline
from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.changes import say_changed
from patchlake.pipeline.driver.drive import drive, half_of_memory
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.fleet import GroupFits, fit_groups
from patchlake.pipeline.driver.heartbeat import beating
from patchlake.pipeline.driver.interests import (
    Regions,
    as_stored,
    asked_regions,
)
from patchlake.pipeline.driver.preview import Preview, measure
from patchlake.pipeline.driver.preview import preview as preview_of
from patchlake.pipeline.driver.publishing import publish
from patchlake.pipeline.driver.settings import weight_files
from patchlake.pipeline.driver.shapes import asked_shapes, fitting_fragments
from patchlake.pipeline.driver.training import choose_rows
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.extractor import Extractor, stride_of
from patchlake.pipeline.groups.partials import embedded_keys, intact_keys
from patchlake.pipeline.images.geometry import geometry_of
from patchlake.pipeline.lake.plan import output_digest, plan_fragments
from patchlake.pipeline.lake.selection import Selection
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.methods import build, options_of, rotations_of
from patchlake.pipeline.methods.shared.contract import Method, Updatable
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.reading.planning import Plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.runs import Run
from patchlake.pipeline.shown import counted
from patchlake.pipeline.stages.decode import Decode
from patchlake.pipeline.stages.embed import Embedder
from patchlake.pipeline.storage.disk import scratch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.where.condition import read_where

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitWork:
    """What a fit is going to do."""

    plan: Plan
    source: Source
    record: runs.RunRecord
    # Group -> which of its rows it learns from.
    selections: Mapping[str, Selection]
    method: Method
    identity: Identity
    # Group -> what of its pictures counts, and the grid of the method's patches, if it has one.
    regions: Regions


def run(
    images: str,
    model: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
    overwrite: bool = False,
) -> models.Manifest:
    """Fit and publish; return the manifest.

    Raises:
        FragmentsFailed: if a fragment or a group failed; the other groups are published.
    """
    storage = settings.storage
    lake, target = open_lake(images, storage), Folder.at(model, storage)
    weights = weight_files(settings.backbone.weights, storage)
    preflight = Preflight([lake], [target], weights, _roles(lake, target))
    preflight.here()
    target.sweep()
    work = _plan(lake, target, settings, where)
    settings = work.record.settings
    published = _published(target, work, overwrite=overwrite)
    if published is not None:
        log.info("%s was fitted by this very run; nothing to do", target.root)
        say_changed(target, published, settings.columns)
        return published
    job = runs.begin(target, work.record, work.plan.kept)
    partials = job.name("partials/")
    pending = work.plan.kept.without_keys(intact_keys(target, partials))
    execution = execution.chosen(work.plan.kept.images)
    pipeline = _pipeline(work, target, partials, execution.threads)
    with beating(job) as heart:
        with execution.start(settings.workers, preflight) as runner:
            tally = drive(heart, runner, pending, pipeline, execution.observer)
            fitting = _fitting(work, target, partials, execution.threads)
            fitted, failed = fit_groups(
                fitting, work.plan.kept, list(tally.failed), runner, execution.observer
            )
        # Another driver of this very run may have been faster, and have cleared the partial results
        # away.
        published = _published(target, work, overwrite=overwrite) if failed else None
        if published is not None:
            target.remove(partials, recursive=True)
            log.info(
                "%s was published, whole, by another driver of this run: nothing is left to do",
                target.root,
            )
            return published
        records = {group: one.record for group, one in fitted.items()}
        suspects = {group: one.suspects for group, one in fitted.items()}
        manifest = _manifest(work, job, records, failed)
        return publish(job, tally, manifest, work.plan.kept, suspects, overwrite=overwrite)


def preview(
    images: str,
    model: str,
    settings: Settings,
    execution: Execution,
    where: str | None = None,
    *,
    overwrite: bool = False,
) -> Preview:
    """Return what `run` would do, and what a sample of its embedding costs; MODEL is only read.

    The selection of the coreset, or what else a method does of the embeddings, is not sampled.
    """
    storage = settings.storage
    lake, target = open_lake(images, storage), Folder.at(model, storage)
    weights = weight_files(settings.backbone.weights, storage)
    Preflight([lake, target], [], weights, _roles(lake, target)).here()
    work = _plan(lake, target, settings, where)
    kept = work.plan.kept
    partials = f"_runs/{work.record.run}/partials/"
    if _published(target, work, overwrite=overwrite) is None:
        pending = kept.without_keys(embedded_keys(target, partials))
    else:
        pending = kept[:0]
    place = execution.place(pending.images)
    with scratch("patchlake-dry-run-") as path:
        folder = Folder.at(path, storage)
        sample = measure(pending, _pipeline(work, folder, partials, 1), folder, partials)
    return preview_of("fit", (lake, target), work.plan, pending, sample, place)


def _roles(lake: Folder, target: Folder) -> list[Use]:
    return [Use(lake, "images"), Use(target, "model", is_written=True)]


def _pipeline(work: FitWork, target: Folder, partials: str, threads: int) -> Pipeline:
    settings = work.record.settings
    embedder = Embedder(
        model=target,
        partials=partials,
        backbone=settings.backbone,
        tile=settings.image.tile,
        method=settings.method.name,
        method_options=work.identity.method_options,
        seed=settings.seed,
        rotations=rotations_of(work.identity.method_options),
    )
    decode = Decode(
        *(work.source, work.selections, threads),
        attempts=settings.fragment_attempts,
        interests=work.regions.interests,
        grids=work.regions.grids,
        rotations=embedder.rotations,
    )
    return Pipeline(decode, embedder)


def _fitting(work: FitWork, target: Folder, partials: str, threads: int) -> GroupFits:
    settings = work.record.settings
    return GroupFits(
        method=work.method,
        identity=work.identity,
        settings=settings,
        model=target,
        partials=partials,
        memory_budget=settings.memory_budget or half_of_memory(),
        threads=(os.cpu_count() or 1, threads),
        rois=as_stored(work.regions.interests),
    )


def _plan(lake: Folder, target: Folder, settings: Settings, where: str | None) -> FitWork:
    """Check everything that can be wrong with the command, then cut the work."""
    method = build(settings.method.name, settings.method.options())
    if settings.index.kind != "exact" and not method.approximable:
        raise ConfigError(
            f"method '{settings.method.name}' has no memory bank that "
            f"index.kind={settings.index.kind} could be measured on; use index.kind=exact"
        )
    radius = settings.method.options().get("position_radius")
    if settings.index.kind != "exact" and radius is not None:
        raise ConfigError(
            f"index.kind={settings.index.kind} finds rows from any place, and "
            f"method.position_radius={radius} asks for those near a patch; use index.kind=exact"
        )
    if settings.robust and not isinstance(method, Updatable):
        raise ConfigError(
            "robust fits score each training image without its own part in the model, and a model "
            f"of method '{settings.method.name}' is trained on all of them together; fit without "
            "--robust (robust=false), or with another method"
        )
    if settings.index.kind != "exact" and settings.method.options().get("layers_apart"):
        raise ConfigError(
            f"index.kind={settings.index.kind} is of one bank, and method.layers_apart=true makes "
            "one for each layer; use index.kind=exact"
        )
    rotations = rotations_of(options_of(method))
    _require_whole_pictures(settings, rotations)
    settings = _with_pixels(_with_layers(settings, method))
    plan = plan_fragments(lake, settings, where).sound()
    # Where each group has its own, it is not known before its photos are.
    geometry = geometry_of(settings.image.resize, settings.image.crop, {})
    source = Source(lake, settings.columns, settings.image, geometry, read_where(where))
    selections = choose_rows(source, plan.kept, settings.fit_on)
    backbone = load_backbone(settings.backbone, seed=settings.seed, storage=lake.storage)
    # From here on it is what it was found to be, in every worker.
    precise = settings.backbone.model_copy(update={"precision": backbone.precision})
    settings = settings.model_copy(update={"backbone": precise})
    shapes: dict[str, tuple[int, int]] = {}
    if settings.image.resize == "auto":
        shapes = asked_shapes(source, selections, plan.kept, settings, stride_of(backbone))
        source = replace(source, geometry=geometry_of("auto", None, shapes))
    bounded = fitting_fragments(settings, [source.geometry], plan.groups, rotations)
    if bounded != settings:
        settings, plan = bounded, plan_fragments(lake, bounded, where).sound()
    embed = partial(method.embed, seed=settings.seed)
    extractor = Extractor(backbone, embed, settings.image.tile)
    # Black images show here, not in every worker, whether method and backbone go together.
    for size in {source.geometry.of(group).input_size for group in plan.groups}:
        extractor.require_fit(size)
    regions = asked_regions(settings, (source, where), plan.groups, extractor)
    assert settings.backbone.layers is not None  # `_with_layers` has set them.
    identity = Identity(
        method=settings.method.name,
        method_options=options_of(method),
        geometry=models.GeometryRecord.of(settings.image),
        network=models.Network(
            name=settings.backbone.name,
            layers=settings.backbone.layers,
            weights=settings.backbone.weights,
            weights_sha256=backbone.weights_sha256,
            precision=backbone.precision,
        ),
        index=settings.index.model_dump(mode="json"),
        seed=settings.seed,
        robust=settings.robust,
        each_has_roi=bool(settings.columns.roi),
        shapes=shapes,
    )
    output, vocabulary = output_digest(settings), settings.columns.vocabulary
    covered = {**identity.covered(), **regions.covered()}
    covered |= {"shapes": shapes} if shapes else {}
    covered |= {"fit_on": "all"} if settings.fit_on == "all" else {}
    version = digest({**covered, "output": output, "vocabulary": vocabulary})
    plan = plan.keyed({}, otherwise=version)
    record = runs.RunRecord(
        run=runs.identify(lake, version, where, plan.kept),
        verb="fit",
        images=lake.root,
        where=where,
        version=version[:12],
        started_at=runs.now(),
        settings=settings,
    )
    log.info(
        "fit of %s: %s in %s, into %s",
        lake.root,
        counted(len(plan.groups), "groups"),
        counted(len(plan.kept), "fragments"),
        target.root,
    )
    return FitWork(plan, source, record, selections, method, identity, regions)


def _require_whole_pictures(settings: Settings, rotations: int) -> None:
    """Refuse regions of interest of photos that are turned. Raises `ConfigError`."""
    regions = "image.roi" if settings.image.roi else "columns.roi" if settings.columns.roi else ""
    if rotations > 1 and regions:
        raise ConfigError(
            f"{regions} says what of a picture counts, and method.rotations={rotations} turns the "
            "part out of that region: leave one of the two out"
        )


def _with_layers(settings: Settings, method: Method) -> Settings:
    """Return the settings with the method's own layers where none are named."""
    if settings.backbone.layers is not None:
        return settings
    backbone = settings.backbone.model_copy(update={"layers": method.layers})
    return settings.model_copy(update={"backbone": backbone})


def _with_pixels(settings: Settings) -> Settings:
    """Return the settings with what bounds inputs of the photo's own shape, where they have it."""
    if settings.image.resize != "auto" or settings.image.pixels is not None:
        return settings
    image = settings.image.model_copy(update={"pixels": settings.image.own_pixels})
    return settings.model_copy(update={"image": image})


def _published(target: Folder, work: FitWork, *, overwrite: bool) -> models.Manifest | None:
    """Return the manifest that this run has published already, if it is complete."""
    if not target.exists(models.MANIFEST):
        return None
    present = models.read_manifest(target)
    if present.run == work.record.run:
        return None if present.failed_groups else present
    if not overwrite:
        # The lake may have changed under it, which does not take a new fit to mend.
        say_changed(target, present, work.source.columns)
        raise ConfigError(
            f"{target.root} holds a different model (fitted {present.created_at:%Y-%m-%d %H:%M}); "
            "choose another MODEL, replace it with --overwrite, or add new images with --update"
        )
    return None


def _manifest(
    work: FitWork,
    job: Run,
    fitted: dict[str, models.GroupRecord],
    failed: dict[str, str],
) -> models.Manifest:
    settings, identity = work.record.settings, work.identity
    return models.Manifest(
        format=models.FORMAT,
        run=job.record.run,
        created_at=job.record.started_at,
        preset=settings.preset,
        method=identity.method,
        method_options=dict(identity.method_options),
        backbone=identity.network,
        geometry=identity.geometry,
        groups=fitted,
        failed_groups=failed,
        libraries=runs.library_versions(),
        settings=settings,
        lineage=[
            models.Step(
                run=job.record.run,
                verb="fit",
                at=job.record.started_at,
                images=job.record.images,
                where=job.record.where,
                groups={
                    group: models.Change(
                        parent=None, digest=record.digest, added=record.images, withdrawn=0
                    )
                    for group, record in fitted.items()
                },
            )
        ],
    )
