"""The work of a score: checked, cut into fragments, and as a pipeline of stages."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pyarrow as pa

from patchlake.pipeline.cluster.runner import Pipeline
from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.drive import models_budget
from patchlake.pipeline.driver.interests import Regions, require_same_roi
from patchlake.pipeline.driver.members import (
    calibrations_of,
    group_digests,
    read_members,
    require_units,
)
from patchlake.pipeline.driver.shapes import fitting_fragments
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.groups.loading import verify_groups
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.lake.plan import forget_cuts, output_digest, plan_fragments, read_cuts
from patchlake.pipeline.lake.selection import Selection
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.reading.passing import extra_schema, require_names
from patchlake.pipeline.reading.planning import Plan, plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.scores.calibration import Calibration, mean_scale
from patchlake.pipeline.scores.verdict import Verdict
from patchlake.pipeline.stages.decode import Decode
from patchlake.pipeline.stages.infer import Scorer
from patchlake.pipeline.stages.publish import Publish
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

_NO_MODEL = "no model"


@dataclass(frozen=True)
class ScoreWork:
    """What a score is going to do."""

    plan: Plan
    # How files were cut by earlier plans into SCORES, as it was remembered.
    cuts: Fragments
    members: Sequence[Member]
    # Group -> digest of its model, of the groups that every member has.
    digests: Mapping[str, str]
    source: Source
    record: runs.RunRecord
    regions: Regions

    @property
    def groups(self) -> list[str]:
        """Groups that are planned and that every member has."""
        return [group for group in self.plan.groups if group in self.digests]

    @cached_property
    def calibrations(self) -> Mapping[str, list[Calibration]]:
        """By group, each member's. Read from the models once."""
        return {group: calibrations_of(self.members, group) for group in self.groups}

    @cached_property
    def verdicts(self) -> Mapping[str, Verdict | None]:
        """By group, what its scores are judged by; None where there is nothing."""
        rate = self.record.settings.verdict.false_alarm_rate
        return {
            group: Verdict.of(calibrations, rate)
            for group, calibrations in self.calibrations.items()
        }


def plan_score(
    lake: Folder,
    folders: Sequence[Folder],
    settings: Settings,
    where: str | None,
    target: Folder,
    since: datetime | None,
) -> ScoreWork:
    """Check everything that can be wrong with the command, then cut the work."""
    require_names(settings.columns.extra)
    members = read_members(folders, settings)
    for member in members:
        require_same_roi(settings, member.model, member.manifest)
    settings = _as_fitted(settings, members[0])
    for member in members:
        member.checked_backbone()
    digests = group_digests(members)
    settings = fitting_fragments(settings, [member.geometry for member in members], digests)
    cuts = read_cuts(target, settings)
    plan = plan_fragments(lake, settings, where, cuts, since)
    for member in members:
        _verify_planned(member, plan.groups)
    known = [group for group in plan.groups if group in digests]
    if len(members) > 1:
        require_units(members, known)
    version = parts.version_name(digest({"groups": digests, "output": output_digest(settings)}))
    plan = plan.keyed(*_key_digests(digests, settings))
    record = runs.RunRecord(
        run=runs.identify(lake, version, where, plan.kept),
        verb="score",
        images=lake.root,
        where=where,
        version=version,
        started_at=settings.score.scored_at or runs.now(),
        settings=settings,
        models=tuple(member.model.root for member in members),
        shapes=members[0].manifest.shapes,
    )
    extra = extra_schema(lake, plan.every, settings.columns)
    source = Source(
        *(lake, settings.columns, settings.image, members[0].geometry), labelled=False, extra=extra
    )
    regions = Regions.of(members, known)
    return ScoreWork(plan, cuts, members, digests, source, record, regions)


def _as_fitted(settings: Settings, first: Member) -> Settings:
    """Return the settings with what the first member has fixed."""
    manifest = first.manifest
    return settings.model_copy(
        update={
            # Heatmaps and metrics need one way from the map to the picture.
            "image": settings.image.model_copy(update=manifest.geometry.settings),
            "seed": manifest.settings.seed,
            "verdict": settings.verdict.over(manifest.settings.verdict),
            # An evaluation means what the fit meant; and the region of interest is the model's.
            "columns": settings.columns.meaning_as(manifest.settings.columns),
        }
    )


def _verify_planned(member: Member, groups: Sequence[str]) -> None:
    """Check a member's files of the groups that are planned, and say of which it has none."""
    of_member = member.manifest.groups
    verify_groups(member.model, [of_member[group] for group in groups if group in of_member])
    for group in groups:
        if group not in of_member:
            log.warning(
                "%s has no group '%s': its rows get status no_model", member.model.root, group
            )


def _key_digests(digests: Mapping[str, str], settings: Settings) -> tuple[dict[str, str], str]:
    """Return what a group's keys cover beside its rows, and that of a group without a model."""
    output = output_digest(settings)
    of_groups = {g: digest({"model": sha, "output": output}) for g, sha in digests.items()}
    return of_groups, digest({"model": _NO_MODEL, "output": output})


def superseded_of(
    target: Folder, work: ScoreWork, done: parts.CommittedParts, in_ledger: pa.StringArray
) -> list[str]:
    """Return the parts of older contents of the planned files, by what the files say now.

    The plan may be as it was remembered (`read_cuts`), and a memory must not decide what is
    removed: files of which a part would go are opened once more. A memory that they contradict is
    forgotten. Reads nothing where no part would go.

    Raises:
        FragmentsFailed: if rows of these files are not scored, because that memory lacked them.
    """
    every, lake, settings = work.plan.every, work.source.images, work.record.settings
    leaving = parts.superseded(every, done, in_ledger)
    if not leaving:
        return []
    paths = set(parts.paths_of(leaving, every))
    entries = [entry for entry in list_tables(lake) if entry.name in paths]
    cut = plan(lake, settings, entries=entries).every
    cut = cut.keyed(*_key_digests(work.digests, settings))
    unknown = cut.without_keys(every.keys.combine_chunks())
    if unknown:
        forget_cuts(target, settings)
        message = (
            f"{unknown[0].path} has other fragments than were planned ({len(unknown)} fragments of "
            f"{len(paths)} files): it has changed since, or its remembered plan was wrong and is "
            "now forgotten"
        )
        if unknown.without_keys(done.sorted_keys).without_keys(in_ledger):
            raise FragmentsFailed(f"{message}; the same command scores what is left")
        log.warning("%s; nothing of it is removed", message)
    return parts.superseded(cut, done, in_ledger)


def pending_of(target: Folder, work: ScoreWork, in_ledger: pa.StringArray) -> Fragments:
    """Return what has neither a part nor an entry in the ledger."""
    done = parts.committed(target, work.record.version)
    return work.plan.kept.without_keys(done.sorted_keys).without_keys(in_ledger)


def pipeline_of(
    work: ScoreWork,
    target: Folder,
    record: runs.RunRecord,
    threads: int,
    members: Sequence[Member],
) -> Pipeline:
    """Return the stages.

    Args:
        work: What is done.
        target: Where parts and heatmaps go.
        record: Of the run, which may have been begun before.
        threads: Of a decode or publish task.
        members: Those of `work`, or with their large banks held elsewhere.
    """
    settings = record.settings
    groups = work.groups
    without: dict[str, Selection] = {
        group: "none" for group in work.plan.groups if group not in groups
    }
    scales = {
        group: some[0].scale if len(some) == 1 else mean_scale(some)
        for group, some in work.calibrations.items()
    }
    publish = Publish(
        geometry=work.source.geometry,
        scores=target,
        version=record.version,
        scored_at=record.started_at,
        heatmaps=settings.score.heatmaps,
        heatmap_store=settings.score.heatmap_store,
        model_ids={group: work.digests[group] for group in groups},
        scales={group: scale for group, scale in scales.items() if scale},
        verdicts={group: verdict for group, verdict in work.verdicts.items() if verdict},
        threads=threads,
    )
    geometries = tuple(dict.fromkeys(member.geometry for member in work.members))
    scorer = Scorer(
        members=tuple(members),
        geometries=geometries,
        models_budget=models_budget(settings),
    )
    pictures = publish.heatmaps != "none" and bool(publish.scales)
    attempts = settings.fragment_attempts
    decode = Decode(
        *(work.source, without, threads, geometries, attempts, pictures),
        interests=work.regions.interests,
        grids=work.regions.grids,
        reasons={
            group: reason
            for member in work.members
            for group, reason in member.manifest.failed_groups.items()
        },
    )
    return Pipeline(decode, scorer, publish)
