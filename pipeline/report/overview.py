"""What is said of each group and night, and which of them, where there are too many to show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchlake.pipeline.maths.proportions import exact_intervals
from patchlake.pipeline.report import counts
from patchlake.pipeline.report.tally import Cell, Tally

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Rows of the table of groups and nights, and of these in the night that the page is of.
_ROWS, _ROWS_OF_NIGHT = 1500, 1000


class Moved(NamedTuple):
    """What the test for drift says of a group in a night."""

    # Of the mean image from that of the training images, in standard deviations of a part.
    shift: float | None
    p_value: float | None
    is_drift: bool | None


# By group and night.
Drift = Mapping[tuple[str, str], Moved]


class Rate(NamedTuple):
    """A share, and its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NightOfGroup:
    """A row of the summary."""

    group: str
    night: str
    cell: Cell
    # Of the images with a verdict; None where there is none.
    alarms: Rate | None
    # Of all images but those without a model.
    unreadable: Rate | None
    # Of good images, the share that may be anomalous at the most; None where that is not known.
    promised: float | None
    # Scores that `SHARES` of the images are at most; None where none has a score.
    quantiles: tuple[float, ...] | None
    moved: Moved | None

    @property
    def is_above(self) -> bool:
        """Whether the interval of the alarms is above what is promised of good images."""
        if self.alarms is None or self.promised is None:
            return False
        return self.alarms.low > self.promised


@dataclass(frozen=True)
class Overview:
    """Groups and nights as the page has them: what matters most is first."""

    tally: Tally
    drift: Drift
    # As the run was asked for; None where no run is recorded.
    rate: float | None
    night: str
    groups: Sequence[str]
    nights: Sequence[str]

    @classmethod
    def of(cls, tally: Tally, drift: Drift, rate: float | None, night: str | None) -> "Overview":
        """Return the overview of a night, the last one if absent; there is one row at least."""
        nights = sorted(tally.nights)
        chosen = nights[-1] if night is None else night
        plain = cls(tally, drift, rate, chosen, sorted(tally.groups), nights)
        rows = plain.rows([(group, chosen) for group in plain.groups if plain.has(group, chosen)])
        rows.sort(key=_urgency)
        first = [row.group for row in rows]
        rest = sorted(set(tally.groups) - set(first))
        return cls(tally, drift, rate, chosen, [*first, *rest], nights)

    def has(self, group: str, night: str) -> bool:
        """Return whether a group has rows in a night."""
        return self._place(group, night) in self.tally.cells

    def promised(self, group: str) -> float | None:
        """Return which share of a group's good images may be anomalous, at the most.

        It is the rate that was asked for, or, where fewer parts were calibrated on than that
        takes, the smallest that can be promised, which a p-value of an anomalous image shows.
        """
        if self.rate is None:
            return None
        seen = self.tally.alarm_p_values.get(self.tally.groups[group], 0.0)
        # p-values are float32, and one of 0.05 is a little more.
        return seen if seen > self.rate * (1 + 1e-6) else self.rate

    def rows(self, wanted: Sequence[tuple[str, str]]) -> list[NightOfGroup]:
        """Return what is said of some groups and nights, which have rows."""
        cells = [self.tally.cells[self._place(*one)] for one in wanted]
        alarms = _rates([c.alarms for c in cells], [c.judged for c in cells])
        unreadable = _rates([c.unreadable for c in cells], [c.images - c.no_model for c in cells])
        return [
            NightOfGroup(
                *(group, night, cell, of_alarms, of_unreadable),
                promised=self.promised(group) if cell.judged else None,
                quantiles=self._quantiles(group, night),
                moved=self.drift.get((group, night)),
            )
            for (group, night), cell, of_alarms, of_unreadable in zip(
                wanted, cells, alarms, unreadable, strict=True
            )
        ]

    def table(self) -> tuple[list[NightOfGroup], int]:
        """Return the rows of the summary, and how many are left out."""
        of_night = [(group, self.night) for group in self.groups if self.has(group, self.night)]
        earlier = [
            (group, night)
            for night in reversed(self.nights)
            if night != self.night
            for group in self.groups
            if self.has(group, night)
        ]
        taken = of_night[:_ROWS_OF_NIGHT]
        taken += earlier[: _ROWS - len(taken)]
        return self.rows(taken), len(self.tally.cells) - len(taken)

    def nights_of(self, group: str, last: int) -> list[NightOfGroup]:
        """Return the last so many nights of a group, the earliest first."""
        nights = [night for night in self.nights if self.has(group, night)]
        return self.rows([(group, night) for night in nights[-last:]])

    def of_night(self) -> list[NightOfGroup]:
        """Return the rows of the page's night."""
        return self.rows([(g, self.night) for g in self.groups if self.has(g, self.night)])

    def total(self, nights: Sequence[str]) -> Cell:
        """Return what is counted of all groups in some nights."""
        wanted = {self.tally.nights[night] for night in nights}
        total = Cell()
        for (_, night), cell in self.tally.cells.items():
            if night in wanted:
                total.add(cell)
        return total

    def _place(self, group: str, night: str) -> tuple[int, int]:
        return self.tally.groups[group], self.tally.nights[night]

    def _quantiles(self, group: str, night: str) -> tuple[float, ...] | None:
        found, number = self.tally.scores_of(*self._place(group, night))
        if not len(found):
            return None
        return tuple(counts.quantiles(found, number, np.array(SHARES)).tolist())


def rate_of(found: int, among: int) -> Rate | None:
    """Return a share with its interval; None of nothing."""
    return _rates([found], [among])[0]


def _rates(found: Sequence[int], among: Sequence[int]) -> list[Rate | None]:
    shares, whole = np.array(found, np.int64), np.array(among, np.int64)
    low, high = exact_intervals(shares, whole)
    return [
        Rate(part / of, float(one), float(other)) if of else None
        for part, of, one, other in zip(found, among, low, high, strict=True)
    ]


def _urgency(row: NightOfGroup) -> tuple[object, ...]:
    """Return what groups are ordered by: drift, more alarms than promised, then the shares."""
    moved = row.moved is not None and bool(row.moved.is_drift)
    alarms = 0.0 if row.alarms is None else row.alarms.value
    unreadable = 0.0 if row.unreadable is None else row.unreadable.value
    return not moved, not row.is_above, -alarms, -unreadable, row.group
