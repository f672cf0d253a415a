"""fit: images/ of good parts -> model/."""

import logging
import os

from patchlake.pipeline.cluster.runner import Pipeline
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.changes import say_changed
from patchlake.pipeline.driver.drive import drive, half_of_memory
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.fitting import FitWork, plan_fit
from patchlake.pipeline.driver.fleet import GroupFits, fit_groups
from patchlake.pipeline.driver.heartbeat import beating
from patchlake.pipeline.driver.interests import as_stored
from patchlake.pipeline.driver.preview import Preview, measure
from patchlake.pipeline.driver.preview import preview as preview_of
from patchlake.pipeline.driver.publishing import publish
from patchlake.pipeline.driver.settings import weight_files
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.partials import embedded_keys, intact_keys
from patchlake.pipeline.methods import rotations_of
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.runs import Run
from patchlake.pipeline.shown import counted
from patchlake.pipeline.stages.decode import Decode
from patchlake.pipeline.stages.embed import Embedder
from patchlake.pipeline.storage.disk import scratch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use

log = logging.getLogger(__name__)


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
    work = plan_fit(lake, settings, where)
    _say(work, target)
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
    work = plan_fit(lake, settings, where)
    _say(work, target)
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


def _say(work: FitWork, target: Folder) -> None:
    groups, fragments = len(work.plan.groups), len(work.plan.kept)
    log.info(
        "fit of %s: %s in %s, into %s",
        *(work.source.images.root, counted(groups, "groups"), counted(fragments, "fragments")),
        target.root,
    )


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
