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
    """Of each night the first `total` rows, of which no group has more than `per_group`.

    What a pool holds does not depend on the order in which rows came: a row that is dropped has
    `per_group` of its group or `total` of its night before it, and so it has among all rows.
    """

    def __init__(self, per_group: int, total: int) -> None:
        self._per_group, self._total = per_group, total
        self._nights: dict[int, list[Row]] = {}

    def offer(self, rows: Rows) -> None:
        """Look at more rows."""
        for night in np.unique(rows.night):
            of_night = rows.where(rows.night == night)
            kept = self._nights.get(int(night), [])
            if len(kept) == self._total:
                of_night = of_night.where(of_night.rank <= kept[-1].rank)
            # Python's own numbers: they are compared, and written, as such.
            offered = [Row(*row) for row in zip(*(c.tolist() for c in of_night), strict=True)]
            self._nights[int(night)] = self._first([*kept, *offered], self._total)

    def of_night(self, night: int) -> list[Row]:
        """Return the rows of one night, the first one first."""
        return self._nights.get(night, [])

    def of_others(self, night: int, total: int) -> list[Row]:
        """Return the first rows of all other nights."""
        others = (row for one, rows in self._nights.items() if one != night for row in rows)
        return self._first(others, total)

    def _first(self, rows: Iterable[Row], total: int) -> list[Row]:
        taken: Counter[int] = Counter()
        first: list[Row] = []
        for row in sorted(rows):
            if taken[row.group] < self._per_group:
                taken[row.group] += 1
                first.append(row)
                if len(first) == total:
                    break
        return first
