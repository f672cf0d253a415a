"""All that the page says, before it is a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchlake.pipeline.report.charts import NIGHTS, GroupCharts, group_charts
from patchlake.pipeline.report.chosen import Shown
from patchlake.pipeline.report.facts import Facts
from patchlake.pipeline.report.overview import NightOfGroup, Overview
from patchlake.pipeline.report.pictures import Seen

# Groups that have charts.
GROUPS = 12
# Rows of the table of statuses.
_STATUSES = 100


@dataclass(frozen=True)
class Status:
    """How many images of a group have no score, for one reason."""

    group: str
    status: str
    images: int


@dataclass(frozen=True)
class Detail:
    """A group that has charts."""

    group: str
    images: int
    nights: int
    judged: bool
    moved: bool
    # Images that its model was trained on; None where that is not known.
    trained: int | None
    # Where the defects of the map are from, in words, and how many there are.
    spots_note: str
    spots: int
    charts: GroupCharts


@dataclass(frozen=True)
class Contents:
    """What the page is made of."""

    overview: Overview
    facts: Facts
    worst: Sequence[Seen]
    misses: Sequence[Seen]
    errors: Sequence[Shown]
    details: Sequence[Detail]

    def statuses(self) -> tuple[list[Status], int]:
        """Return counts of images without a score, the most first, and how many are left out."""
        names = list(self.overview.tally.groups)
        counted = [
            Status(names[group], status, images)
            for (group, status), images in self.overview.tally.statuses.items()
        ]
        counted.sort(key=lambda one: (-one.images, one.group, one.status))
        return counted[:_STATUSES], max(0, len(counted) - _STATUSES)


def details(overview: Overview, facts: Facts, peaks: Mapping[int, np.ndarray]) -> list[Detail]:
    """Return the groups that have charts.

    Args:
        overview: Of the table.
        facts: Of its models.
        peaks: By place of a group, where the maps of shown images are highest (`places.peaks`).
    """
    return [_detail(overview, facts, peaks, group) for group in overview.groups[:GROUPS]]


def _detail(
    overview: Overview, facts: Facts, peaks: Mapping[int, np.ndarray], group: str
) -> Detail:
    nights: list[NightOfGroup] = overview.nights_of(group, NIGHTS)
    place = overview.tally.groups[group]
    spots = overview.tally.spots_of(place)
    note = "centres of all regions, on the upright image"
    if not spots.any() and place in peaks:
        spots, note = peaks[place], "no regions: peaks of the maps of the images above"
    return Detail(
        group=group,
        images=sum(row.cell.images for row in nights),
        nights=len(nights),
        judged=any(row.cell.judged for row in nights),
        moved=any(row.moved is not None and row.moved.shift is not None for row in nights),
        trained=_trained(facts, group),
        spots_note=note,
        spots=int(spots.sum()),
        charts=group_charts(overview, group, spots, nights),
    )


def _trained(facts: Facts, group: str) -> int | None:
    manifests = [model.manifest for model in facts.models if model.manifest is not None]
    found = [m.groups[group].images for m in manifests if group in m.groups]
    return found[0] if found else None
