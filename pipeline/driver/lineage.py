"""A step of a model's lineage, which an update or a withdrawal is: images join it or leave it."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from patchlake.pipeline.cluster.runner import Pipeline, Runner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.drive import Tally, drive, half_of_memory
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.heartbeat import Heart
from patchlake.pipeline.driver.interests import Regions, require_same_roi
from patchlake.pipeline.driver.members import require_unchanged
from patchlake.pipeline.driver.summary import require_success, summarise
from patchlake.pipeline.driver.suspects import photos_of, write_suspects
from patchlake.pipeline.errors import ConfigError, FragmentsFailed, WorkersLost
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.fit import FittedModel
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.groups.partials import intact_keys
from patchlake.pipeline.groups.update import PublishedGroup, updatable
from patchlake.pipeline.images.geometry import Geometries, Geometry
from patchlake.pipeline.lake.selection import Selection
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.methods import build, rotations_of
from patchlake.pipeline.methods.shared.contract import Updatable
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import Identity, require_whole
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.pulse import read_pulses, state_of
from patchlake.pipeline.record.runs import Run
from patchlake.pipeline.stages.decode import Decode
from patchlake.pipeline.stages.embed import Embedder
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedModel:
    """A published model, and the settings with which it is changed."""

    target: Folder
    manifest: models.Manifest
    method: Updatable
    # The user's, and the model's where a model fixes them.
    settings: Settings

    @property
    def step(self) -> int:
        """Number of the next step of the lineage."""
        return len(self.manifest.lineage)

    @property
    def geometry(self) -> Geometry | Geometries:
        """That of the model."""
        return self.member.geometry

    def group(self, name: str) -> PublishedGroup:
        """Return the model of one group. Raises `ConfigError`, `ModelError`."""
        record, identity = self.manifest.groups[name], Identity.of(self.manifest).of_group(name)
        return PublishedGroup.of(self.target, name, record, identity, self.settings)

    def require_weights(self) -> None:
        """Check that the network is that of the fit. Raises `ModelError`."""
        self.member.checked_backbone()

    @property
    def member(self) -> Member:
        """The model as one that could score."""
        return Member(self.target, self.manifest, self.settings.backbone.weights)

    def corpus(self, job: Run, fragments: Fragments, runner: Runner) -> StoredCorpus:
        """Return one group's embeddings, as `embed` has stored them."""
        return StoredCorpus(
            model=self.target,
            partials=job.name("partials/"),
            fragments=fragments,
            workers=runner,
            memory_budget=self.settings.memory_budget or half_of_memory(),
            threads=os.cpu_count() or 1,
            rotations=self.rotations,
        )

    @property
    def rotations(self) -> int:
        """Inputs of each image that joins: it, and copies that are turned."""
        return rotations_of(self.manifest.method_options)


def open_base(target: Folder, settings: Settings) -> PublishedModel:
    """Return the model of a folder, to be changed.

    Raises:
        ConfigError: if its method cannot, or the settings contradict the model.
        ModelError: if there is none.
    """
    target.sweep()
    manifest = models.read_manifest(target)
    require_whole(target, manifest)
    require_unchanged(settings, manifest)
    require_same_roi(settings, target, manifest)
    method = build(manifest.method, manifest.method_options)
    if manifest.lineage and manifest.lineage[-1].verb != "fit":
        # Left by a step that was stopped between publishing and cleaning up.
        target.remove(f"_runs/{manifest.run}/partials", recursive=True)
    fitted = manifest.settings
    weights = settings.backbone.weights or manifest.backbone.weights
    fixed = {
        "preset": fitted.preset,
        "seed": fitted.seed,
        "robust": fitted.robust,
        "fit_on": fitted.fit_on,
        "image": settings.image.model_copy(
            update={
                **manifest.geometry.settings,
                "uri_prefixes": settings.image.uri_prefixes or fitted.image.uri_prefixes,
            }
        ),
        "columns": settings.columns.over(fitted.columns),
        "backbone": fitted.backbone.model_copy(
            update={"weights": weights, "precision": manifest.backbone.precision}
        ),
        "method": fitted.method,
        "index": fitted.index,
    }
    effective = settings.model_copy(update=fixed)
    return PublishedModel(target, manifest, updatable(method, manifest.method), effective)


@dataclass(frozen=True)
class RowsToEmbed:
    """Which rows of a lake are to be embedded."""

    source: Source
    selections: Mapping[str, Selection]
    fragments: Fragments
    # Fragment's key -> rows, numbered in the file.
    rows: Mapping[str, Sequence[int]]

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows.values()))


def embed(
    base: PublishedModel, heart: Heart, rows: RowsToEmbed, execution: Execution, runner: Runner
) -> Tally:
    """Embed what is not embedded yet; the embeddings stay in the run's folder."""
    partials = heart.run.name("partials/")
    pending = rows.fragments.without_keys(intact_keys(base.target, partials))
    settings = base.settings
    embedder = Embedder(
        model=base.target,
        partials=partials,
        backbone=settings.backbone,
        tile=settings.image.tile,
        method=base.manifest.method,
        method_options=base.manifest.method_options,
        seed=settings.seed,
        rotations=base.rotations,
    )
    regions = Regions.of([base.member], rows.fragments.groups)
    decode = Decode(
        rows.source,
        rows.selections,
        execution.threads,
        attempts=settings.fragment_attempts,
        chosen=rows.rows,
        interests=regions.interests,
        grids=regions.grids,
        rotations=base.rotations,
    )
    return drive(heart, runner, pending, Pipeline(decode, embedder), execution.observer)


@dataclass(frozen=True)
class Outcome:
    """What a step did: groups that it changed, and why others were not."""

    fitted: Mapping[str, FittedModel]
    changes: Mapping[str, models.Change]
    failed: Mapping[str, str]
    # The reviews that it went by, if it did.
    reviews: models.ReviewsTaken | None = None


def publish_step(
    base: PublishedModel, job: Run, tally: Tally, planned: Fragments, outcome: Outcome
) -> models.Manifest:
    """Replace `model.json`, which alone makes the step happen; return the manifest.

    A group that failed keeps its model. The files of the earlier models stay: scoring that began
    with them goes on.

    Raises:
        ConfigError: if the model was changed by another run since this one began.
        FragmentsFailed: if a group failed, or too many images could not be used.
    """
    manifest = _changed(base, job, outcome)
    present = models.read_manifest(base.target)
    if present.run == job.record.run:
        log.info("another driver of this run has published %s", base.target.root)
        return present
    if outcome.changes:
        _take_step(base, job)
        suspects = {group: one.suspects for group, one in outcome.fitted.items()}
        write_suspects(base.target, suspects, photos_of(job.record), is_step=True)
        models.write_manifest(base.target, manifest)
    digests = {group: change.digest for group, change in outcome.changes.items()}
    summary = summarise(job, tally, planned, len(planned) - tally.fragments, groups=digests)
    if outcome.failed:
        summary = summary.model_copy(update={"exit_code": FragmentsFailed.exit_code})
    job.finish(summary)
    base.target.remove(job.name("partials"), recursive=True)
    # What a worker that was killed has left of a file.
    base.target.sweep()
    if outcome.failed:
        reasons = "; ".join(f"{group}: {reason}" for group, reason in outcome.failed.items())
        raise FragmentsFailed(
            f"{len(outcome.failed)} groups keep their earlier models; the same command tries them "
            f"again ({reasons})",
            manifest,
        )
    require_success(summary, manifest)
    return manifest


def _take_step(base: PublishedModel, job: Run) -> None:
    """Take the step that follows the model which this run began with, alone.

    A run that took it and died before it published has changed nothing, and loses it.

    Raises:
        ConfigError: if another run has it, or has published since.
    """
    target, before, own = base.target, base.manifest.run, job.record.run
    holder = models.claim_step(target, before, own)
    if holder != own:
        state = state_of(read_pulses(target, [holder]).get(holder), is_finished=False)
        if state != "running" and models.read_manifest(target).run == before:
            models.give_up_step(target, before)
            holder = models.claim_step(target, before, own)
    present = models.read_manifest(target).run
    if holder != own or present != before:
        other = present if present != before else holder
        raise ConfigError(
            f"{target.root} was changed by run {other} since this run began with {before}; start "
            "again"
        )


def _changed(base: PublishedModel, job: Run, outcome: Outcome) -> models.Manifest:
    """Return the manifest after the step; the same one where no group has changed."""
    if not outcome.changes:
        return base.manifest
    record, manifest = job.record, base.manifest
    assert record.verb in ("update", "withdraw")
    step = models.Step(
        run=record.run,
        verb=record.verb,  # type: ignore[arg-type]
        at=record.started_at,
        images=record.images,
        where=record.where,
        groups=dict(outcome.changes),
        reviews=outcome.reviews,
    )
    changed = {group: one.record for group, one in outcome.fitted.items()}
    backbone = manifest.backbone.model_copy(update={"weights": base.settings.backbone.weights})
    return manifest.model_copy(
        update={
            "run": record.run,
            "backbone": backbone,
            "groups": {**manifest.groups, **changed},
            "libraries": runs.library_versions(),
            "lineage": [*manifest.lineage, step],
        }
    )


@dataclass(frozen=True)
class ChangedGroup:
    """One group after a step."""

    model: FittedModel
    change: models.Change


def change_groups(groups: Iterable[str], change: Callable[[str], ChangedGroup | None]) -> Outcome:
    """Change each group; one that fails keeps its model, and the others go on.

    Args:
        groups: Their names.
        change: Changes one; None where it stays as it is.
    """
    fitted: dict[str, FittedModel] = {}
    changes: dict[str, models.Change] = {}
    failed: dict[str, str] = {}
    for group in groups:
        try:
            changed = change(group)
        except (ConfigError, WorkersLost, FileNotFoundError) as error:
            # A file that is gone: another driver of this run has published, and cleared up.
            log.warning("group '%s' keeps its earlier model: %s", group, error)
            failed[group] = str(error)
            continue
        if changed is not None:
            fitted[group], changes[group] = changed.model, changed.change
    return Outcome(fitted, changes, failed)


def require_embedded(fragments: Fragments, tally: Tally) -> None:
    """Raise `ConfigError` if any of these fragments failed."""
    failed = fragments.with_keys(pa.array(list(tally.failed), pa.string())).keys.to_pylist()
    if failed:
        raise ConfigError(f"fragments {failed} failed")
