"""The first few rows of each night in some order, of rows that come in any order and cut."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """A row of the score table; the first of several is the smallest."""

    # What the order goes by, the smallest first; the identity settles what is equal.
    rank: float
    source_path: str
    source_row: int
    # Places in the tally's names, and in the files of the dataset.
    group: int
    night: int
    file: int


class Rows(NamedTuple):
    """Some rows, as columns; `rank` is float64 and finite."""

    rank: np.ndarray
    source_path: np.ndarray
    source_row: np.ndarray
    group: np.ndarray
    night: np.ndarray
    file: np.ndarray

    def where(self, kept: np.ndarray) -> "Rows":
        """Return those that a mask keeps."""
        return Rows(*(column[kept] for column in self))


class Pool:
    """Of each night the first `total` rows, and so many that no group fills it alone.

    The first are those of which no group has more than `per_group`; what is left of `total` is
    filled with those that come next. What a pool holds does not depend on the order in which rows
    came: a row that is dropped has `per_group` of its group or `total` of its night before it, and
    so it has among all rows.
    """

    def __init__(self, per_group: int, total: int) -> None:
        self._per_group, self._total = per_group, total
        # Of each night: the first with no more than `per_group` of a group, and the first of all.
        self._nights: dict[int, tuple[list[Row], list[Row]]] = {}

    def offer(self, rows: Rows) -> None:
        """Look at more rows."""
        for night in np.unique(rows.night):
            of_night = rows.where(rows.night == night)
            fair, first = self._nights.get(int(night), ([], []))
            if len(fair) == self._total:
                # The fair ones are as far down as any that can come in.
                of_night = of_night.where(of_night.rank <= fair[-1].rank)
            of_night = of_night.where(self._may_be_first(of_night))
            # Python's own numbers: they are compared, and written, as such.
            offered = [Row(*row) for row in zip(*(c.tolist() for c in of_night), strict=True)]
            self._nights[int(night)] = (
                self._fair([*fair, *offered], self._total),
                sorted([*first, *offered])[: self._total],
            )

    def of_night(self, night: int) -> list[Row]:
        """Return the rows of one night, the first one first."""
        fair, first = self._nights.get(night, ([], []))
        return self._filled(fair, first, self._total)

    def of_others(self, night: int, total: int) -> list[Row]:
        """Return the first rows of all other nights."""
        others = [pools for one, pools in self._nights.items() if one != night]
        fair = self._fair((row for rows, _ in others for row in rows), total)
        return self._filled(fair, sorted(row for _, rows in others for row in rows), total)

    def _may_be_first(self, rows: Rows) -> np.ndarray:
        """Return a mask of the rows that can be among the first, equal ranks included."""
        rank, group = rows.rank, rows.group
        if len(rank) <= self._total:
            return np.ones(len(rank), bool)
        mask: np.ndarray = rank <= np.partition(rank, self._total - 1)[self._total - 1]
        order = np.lexsort((rank, group))
        _, begin, place = np.unique(group[order], return_index=True, return_inverse=True)
        ends = np.append(begin[1:], len(rank))
        last = rank[order][np.minimum(begin + self._per_group, ends) - 1]
        mask[order] |= rank[order] <= last[place]
        return mask

    @staticmethod
    def _filled(fair: list[Row], first: list[Row], total: int) -> list[Row]:
        taken = set(fair)
        rest = [row for row in first if row not in taken]
        return sorted([*fair, *rest[: max(0, total - len(fair))]])

    def _fair(self, rows: Iterable[Row], total: int) -> list[Row]:
        taken: Counter[int] = Counter()
        fair: list[Row] = []
        for row in sorted(rows):
            if len(fair) == total:
                break
            if taken[row.group] < self._per_group:
                taken[row.group] += 1
                fair.append(row)
        return fair
