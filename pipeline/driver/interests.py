"""Regions of interest of a job: as the settings say them, and as its models have them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError, ImageError
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.groups.roi import (
    grids_of,
    load_interest,
    roi_files,
    to_json,
)
from patchlake.pipeline.images.decode import decode_mask, limits_of
from patchlake.pipeline.images.geometry import Geometries, Geometry
from patchlake.pipeline.images.interest import (
    MAX_MASK_SIDE,
    Interest,
    Painted,
    Polygons,
    emptiness,
    interior_of,
)
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.methods import build
from patchlake.pipeline.model_store.models import GroupRecord, Manifest
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder, split_uri

# Of a picture on which a region is tried before there is one, in sides of the model's input.
_LARGE = 4


def read_interests(settings: Settings) -> dict[str, Interest]:
    """Return what `image.roi` says of each group; masks are read, and limited as images are.

    Raises:
        ConfigError: if a mask is not there, cannot be read, or marks nothing.
    """
    return {
        group: _read_mask(group, said, settings) if isinstance(said, str) else Polygons(said)
        for group, said in settings.image.roi.items()
    }


def _read_mask(group: str, path: str, settings: Settings) -> Painted:
    what = f"image.roi of group {shown(group)} is {shown(path)}"
    folder, name = split_uri(path, settings.storage)
    limits = limits_of(settings.image)
    try:
        content = folder.read(name, at_most=limits.max_bytes + 1)
        # The first look is for its size.
        width, height = decode_mask(content, (1, 1), limits).size
        shrink = min(1.0, MAX_MASK_SIDE / max(width, height))
        frame = max(1, round(height * shrink)), max(1, round(width * shrink))
        mask = decode_mask(content, frame, limits)
    except FileNotFoundError:
        raise ConfigError(f"{what}, and there is no such file") from None
    except ImageError as error:
        raise ConfigError(f"{what}, which is no mask that can be read: {error}") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"{what}, which is no file") from None
    if mask.is_empty:
        raise ConfigError(
            f"{what}, whose {width}x{height} pixels are all ground: paint what counts in white on "
            "black"
        )
    return Painted.of(mask.is_defect)


def asked_regions(
    settings: Settings,
    of: tuple[Source, str | None],
    groups: Sequence[str],
    extractor: Extractor,
) -> "Regions":
    """Return the regions of a fit, of which nothing is known but settings.

    Args:
        settings: Those of the fit.
        of: The lake, with how its images become inputs, and the condition that chose rows of it.
        groups: Of the plan.
        extractor: What makes the method's patches.

    Raises:
        ConfigError: if one cannot be read, is of a group that is not there, though no condition
            leaves groups out, or holds no patch.
    """
    (source, where), interests = of, read_interests(settings)
    unknown = sorted(set(interests) - set(groups))
    if unknown and where is None:
        raise ConfigError(
            f"image.roi names the groups {unknown}, and {source.images.root} has "
            f"{sorted(groups)}: name one of these, or leave it out"
        )
    known = {group: interest for group, interest in interests.items() if group in groups}
    # Only what is confined is asked for its patches: those of a large input take a minute.
    confined = groups if settings.columns.roi else list(known)
    regions = Regions(known, grids_by_group(source.geometry, confined, extractor))
    _require_patches(regions, source.geometry)
    return regions


def _require_patches(regions: "Regions", geometry: Geometry | Geometries) -> None:
    """Raise `ConfigError` if a region holds no patch. Of a crop, only each image can tell."""
    for group, interest in regions.interests.items():
        of_group = geometry.of(group)
        if of_group.crop is not None:
            continue
        height, width = of_group.input_size
        large = _LARGE * width, _LARGE * height
        fault = emptiness(interior_of(interest, of_group, large), regions.grids[group])
        if fault:
            raise ConfigError(
                f"image.roi of group {shown(group)}: {fault}; make it larger, or raise "
                f"image.resize (or image.pixels): inputs are {[height, width]}"
            )


def require_same_roi(settings: Settings, model: Folder, manifest: Manifest) -> None:
    """Refuse regions that are not those of the model; those that are not named are the model's.

    Raises:
        ConfigError: naming both.
    """
    named, fitted = settings.columns.roi, manifest.settings.columns.roi
    if bool(named) != bool(fitted) and "roi" in settings.columns.model_fields_set:
        raise ConfigError(
            f"columns.roi is {shown(named)}, the model of {model.root} was fitted with "
            f"{shown(fitted)}: either both have a region for each image, or neither; fit again"
        )
    # Of groups that the model has not, rows are `no_model` anyway.
    for group, interest in read_interests(settings).items():
        if group not in manifest.groups:
            continue
        present = load_interest(model, manifest.groups[group])
        if present != interest:
            raise ConfigError(
                f"image.roi of group {shown(group)} is {described(interest)}, the model of "
                f"{model.root} was fitted with {described(present)}; leave it out, or fit again"
            )


def described(interest: Interest | None) -> str:
    """Return a region in a few words, for a message."""
    if interest is None:
        return "none"
    if isinstance(interest, Polygons):
        return shown(str([[list(corner) for corner in one] for one in interest.polygons]))
    assert isinstance(interest, Painted)
    share = interest.lines(0, interest.height, (interest.width, interest.height)).mean()
    return f"a mask of {interest.width}x{interest.height} pixels, {share:.2%} of them inside"


def require_one_roi(members: Sequence[Member]) -> None:
    """Refuse members of an ensemble that do not look at the same part of a picture.

    Raises:
        ConfigError: naming the two, and the group.
    """
    first, *others = members
    for other in others:
        if bool(first.manifest.settings.columns.roi) != bool(other.manifest.settings.columns.roi):
            raise ConfigError(
                f"columns.roi is {shown(first.manifest.settings.columns.roi)} in {first.model.root}"
                f" and {shown(other.manifest.settings.columns.roi)} in {other.model.root}: members "
                "of an ensemble have one region of interest; fit them alike"
            )
        for group in sorted(set(first.manifest.groups) & set(other.manifest.groups)):
            one, two = (_digests(m.manifest.groups[group]) for m in (first, other))
            if one != two:
                raise ConfigError(
                    f"image.roi of group {shown(group)} is {_described(first, group)} in "
                    f"{first.model.root} and {_described(other, group)} in {other.model.root}: "
                    "members of an ensemble have one region of interest; fit them alike"
                )


def _digests(record: GroupRecord) -> list[str]:
    return [file.sha256 for file in roi_files(record)]


def _described(member: Member, group: str) -> str:
    return described(load_interest(member.model, member.manifest.groups[group]))


@dataclass(frozen=True)
class Regions:
    """What of pictures counts, as the models that score them have it."""

    # Group -> its region, where it has one.
    interests: Mapping[str, Interest]
    # Group -> grids of the patches of each member that has any; empty where there is no region.
    grids: Mapping[str, Sequence[tuple[int, int]]]

    @classmethod
    def of(cls, members: Sequence[Member], groups: Sequence[str]) -> "Regions":
        """Return the regions of some groups that all members have. Raises `ModelError`.

        Of an ensemble, all have the first member's (`require_one_roi`).
        """
        first = members[0]
        found = {g: load_interest(first.model, first.manifest.groups[g]) for g in groups}
        interests = {group: one for group, one in found.items() if one is not None}
        if not interests and not first.manifest.settings.columns.roi:
            return cls({}, {})
        each = [_grids(member, groups) for member in members]
        return cls(interests, {g: [grid for own in each for grid in own[g]] for g in groups})

    def covered(self) -> dict[str, object]:
        """Return what a fit's version covers of them: nothing, where there are none."""
        stored = as_stored(self.interests)
        found = {group: hashlib.sha256(one).hexdigest() for group, one in stored.items()}
        return {"roi": found} if found else {}


def _grids(member: Member, groups: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return the finest grid of a member's patches, of each group."""
    manifest = member.manifest
    method = build(manifest.method, manifest.method_options)
    embed = partial(method.embed, seed=manifest.settings.seed)
    extractor = Extractor(member.checked_backbone(), embed, manifest.geometry.tile)
    return grids_by_group(member.geometry, groups, extractor)


def grids_by_group(
    geometry: Geometry | Geometries, groups: Sequence[str], extractor: Extractor
) -> dict[str, list[tuple[int, int]]]:
    """Return `grids_of` of each group's inputs; each size goes through the network once.

    Args:
        geometry: Of the inputs.
        groups: Those asked for.
        extractor: The network, and what the method makes of its maps.

    Raises:
        ConfigError: if the network or its tiles do not go together with a size.
    """
    sizes = {group: geometry.of(group).input_size for group in groups}
    grids = {size: grids_of(extractor, size) for size in set(sizes.values())}
    return {group: grids[size] for group, size in sizes.items()}


def as_stored(interests: Mapping[str, Interest]) -> dict[str, bytes]:
    """Return the regions as models keep them."""
    return {group: to_json(interest) for group, interest in interests.items()}
