"""The models that a score job scores with: one, or the members of an ensemble."""

import logging
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.interests import require_one_roi
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.banks import (
    Holders,
    SharedBank,
    load_dense,
    searched_bytes,
    shard_starts,
)
from patchlake.pipeline.groups.files import load_calibration
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.methods.shared.nearness import POSITION_RADIUS
from patchlake.pipeline.methods.shared.stacked import LAYERS_APART
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import require_whole
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.scores.verdict import Verdict
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

# Bytes of a bank that it pays to share: less is little beside the 0.6 GB that a worker has anyway.
_LARGE = 64 * 2**20


def read_members(folders: Sequence[Folder], settings: Settings) -> list[Member]:
    """Return the models in an order that does not depend on how they were named.

    Raises:
        ConfigError: if they cannot score together.
    """
    members = []
    for folder in folders:
        manifest = models.read_manifest(folder)
        require_whole(folder, manifest)
        require_unchanged(settings, manifest)
        weights = settings.backbone.weights or manifest.backbone.weights
        members.append(Member(folder, manifest, weights))
    if len(members) == 1:
        return members
    runs_ = {member.manifest.run for member in members}
    if len(runs_) < len(members):
        raise ConfigError(f"two of the {len(members)} models are the same: name each once")
    names = sorted({member.manifest.backbone.name for member in members})
    if settings.backbone.weights and len(names) > 1:
        raise ConfigError(
            f"backbone.weights is one file, the members have backbones {names}: leave it out, "
            "their weights are taken from where they were when they were fitted"
        )
    _require_one_picture(members)
    require_one_roi(members)
    return sorted(members, key=lambda member: member.manifest.run)


def _require_one_picture(members: Sequence[Member]) -> None:
    """Refuse members that do not see the same picture of a file. Raises `ConfigError`."""
    seen = sorted({str(m.manifest.geometry) for m in members if m.manifest.geometry.crop})
    if seen and len({m.geometry for m in members}) > 1:
        raise ConfigError(
            f"members see different parts of an image ({'; '.join(seen)}, and others): maps can "
            "be joined of equal crops, or of none"
        )
    if members[0].manifest.geometry.draft and len({m.geometry for m in members}) > 1:
        raise ConfigError(
            "members were fitted with image.draft and different image.resize: one picture is read "
            "for all of them, and its scale hangs on all; fit them alike"
        )
    for name in ("bits", "draft"):
        values = sorted({str(getattr(m.manifest.geometry, name)) for m in members})
        if len(values) > 1:
            raise ConfigError(
                f"members were fitted with image.{name} {' and '.join(values)}: one picture is "
                "read for all of them, so fit them alike"
            )


def group_digests(members: Sequence[Member]) -> dict[str, str]:
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


def require_units(members: Sequence[Member], groups: Sequence[str]) -> None:
    """Refuse an ensemble of which a member has no unit to compare its scores in.

    Raises:
        ConfigError: if a group's calibration is of too few images, or of ones that score equally.
    """
    for member in members:
        for group in groups:
            fault = load_calibration(member.model, member.manifest.groups[group]).unit_fault
            if fault:
                raise ConfigError(
                    f"group '{group}' of {member.model.root} ({member.manifest.method}) is too "
                    f"little calibrated for an ensemble: {fault}. Fit that group on more good "
                    "images, leave it out with --where, or score with one model"
                )


def calibrations_of(members: Sequence[Member], group: str) -> list[Calibration]:
    """Return each member's. Raises `ModelError`."""
    return [load_calibration(m.model, m.manifest.groups[group]) for m in members]


def announce_verdicts(members: Sequence[Member], verdicts: Mapping[str, Verdict | None]) -> None:
    """Warn of groups without verdicts, and of those that promise less than was asked for."""
    unlabelled = [one.model.root for one in members if one.manifest.settings.fit_on == "all"]
    if unlabelled:
        log.warning(
            "nothing is promised of false alarms: %s was fitted on images of which nobody knows "
            "whether they are good (fit_on=all), and a p_value is a rank among them",
            ", ".join(unlabelled),
        )
    for group, verdict in verdicts.items():
        if verdict is None:
            log.warning(
                "group '%s' has no verdicts: it takes good images of two parts at least that each "
                "model has measured (docs/verdicts.md), and models of before have measured none",
                group,
            )
        elif verdict.reservation and not unlabelled:
            log.warning("group '%s': %s", group, verdict.reservation)


def require_unchanged(settings: Settings, manifest: models.Manifest) -> None:
    """Refuse settings that the model has fixed otherwise; defaults stand for what it has."""
    fresh = Settings()
    asked: dict[str, tuple[object, object, object]] = {
        "image.resize": (settings.image.resize, fresh.image.resize, manifest.geometry.resize),
        "image.crop": (settings.image.crop, fresh.image.crop, manifest.geometry.crop),
        "image.pixels": (settings.image.pixels, fresh.image.pixels, manifest.geometry.pixels),
        "image.tile": (settings.image.tile, fresh.image.tile, manifest.geometry.tile),
        "image.bits": (settings.image.bits, fresh.image.bits, manifest.geometry.bits),
        "image.draft": (settings.image.draft, fresh.image.draft, manifest.geometry.draft),
        "backbone.name": (settings.backbone.name, fresh.backbone.name, manifest.backbone.name),
        "backbone.layers": (
            settings.backbone.layers,
            fresh.backbone.layers,
            manifest.backbone.layers,
        ),
        "backbone.precision": (
            settings.backbone.precision,
            fresh.backbone.precision,
            manifest.backbone.precision,
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


def announce_cost(members: Sequence[Member], pending: Fragments, scored: Container[str]) -> None:
    """Say what a search that is dear will cost, before it begins.

    Args:
        members: Whose searches they are.
        pending: What is to be done.
        scored: Groups that all members know; the others are not searched.
    """
    for member in members:
        for group in pending.groups:
            if group not in scored:
                continue
            cost = member.manifest.groups[group].facts.get("gflop_per_image")
            if isinstance(cost, float):
                images = pending.of_group(group).images
                log.info(
                    "%s on group '%s': %.4g GFLOP of search an image, %.4g TFLOP for %d images "
                    "(a core does 50 to 200 GFLOP a second; SPADE can prune most of its own)",
                    member.manifest.method,
                    group,
                    cost,
                    cost * images / 1000,
                    images,
                )


def place_large_banks(
    members: Sequence[Member],
    groups: Sequence[str],
    memory_budget: int,
    runner: Runner,
    stack: ExitStack,
) -> list[Member]:
    """Split banks beyond `memory_budget` over processes; hold other large ones once on each node.

    The first banks that fit `memory_budget` together are held, and stay to the end. Each worker
    loads the others when it comes to them.

    Raises:
        ConfigError: if a bank beyond `memory_budget` is searched near places or layer by layer, and
            so whole.
    """
    sharing = runner.sharing()
    left = min(memory_budget, sharing.bytes) if sharing else 0
    placed = []
    for member in members:
        holders: dict[str, Holders] = {}
        banks: dict[str, SharedBank] = {}
        for group in groups:
            record = member.manifest.groups.get(group)
            if record is None:
                continue
            size = searched_bytes(record)
            starts = shard_starts(member.model, record, memory_budget)
            whole = [name for name in (LAYERS_APART, POSITION_RADIUS) if name in record.facts]
            if starts and whole:
                raise ConfigError(
                    f"the bank of group '{group}' takes {size / 2**20:.3g} MiB with its search, "
                    f"memory_budget is {memory_budget / 2**20:.3g} MiB, and a bank with "
                    f"method.{whole[0]} is not split over processes: raise memory_budget, or "
                    "fit with a smaller method.max_bank_rows"
                )
            if starts:
                log.info("the bank of group '%s' is split over %d processes", group, len(starts))
                holders[group] = stack.enter_context(runner.members(starts))
            elif sharing and record.index == "exact" and _LARGE <= size <= left:
                log.info(
                    "the bank of group '%s', %.3g MiB, is in memory once on each node",
                    group,
                    size / 2**20,
                )
                banks[group] = sharing.share(partial(load_dense, member.model, record))
                left -= size
        placed.append(replace(member, holders=holders, banks=banks))
    return placed
