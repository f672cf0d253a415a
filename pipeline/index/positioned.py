"""Exact nearest neighbours among the bank rows whose places are near a query's own.

A bank row has a place, the patch of the grid that it comes from, and so has a query. A row is
within radius r of a query where it is at most r patches above or below it, and at most r to its
left or right: a square of 2 r + 1 patches, as the pooled neighbourhood of PatchCore is one. Where
fewer than k rows are within the radius that was set, the radius of that query is the smallest one
that has k of them, so that each query always has its k neighbours.

Few rows are scanned (`pipeline.index.place_lists`), many are compared in products
(`pipeline.index.squares`), whichever is expected to take less. Both only propose, and what they
leave ends in `exact.measured`, as in every exact search: with a radius that covers the grid the
results are to the bit those of `ExactSearch`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.exact import check_asked, measured
from patchlake.pipeline.index.place_lists import PlaceLists
from patchlake.pipeline.index.squares import Squares

# A pair takes about as long to scan as 33 dimensions and those that it has, 0.09 ns each. Up to so
# many of a query on average, 8 us, scanning is the faster way (ResNet-18, EfficientNet-Lite0).
_PAIR, _SCANNED = 33, 90_000


@dataclass(frozen=True)
class PositionedSearch:
    """Searches a memory bank of float32 rows near a place. Build it with `over`, ask it by `at`."""

    bank: Float32[np.ndarray, "bank dim"]
    # Of each bank row its y and x in the patch grid of so many rows and columns.
    places: Int64[np.ndarray, "bank 2"]
    grid: tuple[int, int]
    radius: int
    _rows: PlaceLists | Squares

    @classmethod
    def over(
        cls,
        bank: Float32[np.ndarray, "bank dim"],
        places: Int64[np.ndarray, "places 2"],
        grid: tuple[int, int],
        radius: int,
    ) -> "PositionedSearch":
        """Return a search over the bank. It keeps the bank and one copy, by place.

        Args:
            bank: At least one row.
            places: Of each row its y and x in the grid.
            grid: Rows and columns.
            radius: 0 or more: 0 is the same place only.

        Raises:
            ValueError: if there are not as many places as rows, or one is not in the grid.
        """
        if len(places) != len(bank) or (places < 0).any() or (places >= grid).any():
            raise ValueError(
                f"{len(places)} places do not fit {len(bank)} bank rows and a grid of {grid[0]} x "
                f"{grid[1]} patches"
            )
        bank = np.ascontiguousarray(bank)
        near = places_near(grid, radius)
        cells = places[:, 0] * grid[1] + places[:, 1]
        counts = np.append(np.bincount(cells, minlength=len(near)), 0)
        scanned = counts[near].sum(axis=1).mean() * (_PAIR + bank.shape[1])
        rows: PlaceLists | Squares
        if scanned <= _SCANNED:
            rows = PlaceLists.over(bank, cells, near)
        else:
            rows = Squares.over(bank, places, grid)
        return cls(bank, places, grid, radius, rows)

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return len(self.bank)

    def at(self, places: Int64[np.ndarray, "queries 2"]) -> "SearchAt":
        """Return the search for queries at these places, given as y and x in the grid."""
        return SearchAt(self, places)

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        vectors: np.ndarray = self.bank[rows]
        return vectors

    def nearest_at(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        places: Int64[np.ndarray, "queries 2"],
        k: int,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return L2 distances and bank rows of the k nearest within each query's radius.

        At most O(queries * rows nearby * dim).

        Args:
            queries: In the units of the bank.
            places: Of each query its y and x.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out.

        Raises:
            ValueError: if fewer than k rows remain in all, or the dimensions differ.
        """
        check_asked(self.bank, queries.shape[1], k, ignore)
        counted = self.places if ignore is None else np.delete(self.places, ignore, axis=0)
        reaches = reaches_of(counted, self.grid, self.radius, k)[places[:, 0], places[:, 1]]
        if isinstance(self._rows, Squares):
            query, row = self._rows.candidates(queries, places, reaches, k, ignore)
        else:
            query, row = self._scanned(queries, places, reaches, k, ignore)
        order = np.argsort(query, kind="stable")
        return measured(queries, self.bank, query[order], row[order], k)

    def _scanned(
        self,
        queries: np.ndarray,
        places: np.ndarray,
        reaches: np.ndarray,
        k: int,
        ignore: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(self._rows, PlaceLists)
        usual = np.flatnonzero(reaches == self.radius)
        cells = places[usual, 0] * self.grid[1] + places[usual, 1]
        query, row, is_open = self._rows.candidates(queries[usual], cells, k, ignore)
        pairs = [(usual[query], row)]
        left = np.ones(self.size, bool)
        if ignore is not None:
            left[ignore] = False
        # Of these all rows nearby are measured: a radius that had to grow has few in it.
        for number in [*np.flatnonzero(reaches != self.radius), *usual[is_open]]:
            away = np.abs(self.places - places[number]).max(axis=1)
            near = np.flatnonzero((away <= reaches[number]) & left)
            pairs.append((np.full(len(near), number), near))
        query, row = (np.concatenate(column) for column in zip(*pairs, strict=True))
        return query, row


@dataclass(frozen=True)
class SearchAt:
    """A `pipeline.index.search.Search` for queries at known places, in their order."""

    search: PositionedSearch
    places: Int64[np.ndarray, "queries 2"]

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return self.search.size

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        return self.search.vectors(rows)

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `PositionedSearch.nearest_at` returns; there is a place for each query."""
        return self.search.nearest_at(queries, self.places, k, ignore)


def reaches_of(
    places: Int64[np.ndarray, "counted 2"], grid: tuple[int, int], radius: int, k: int
) -> Int64[np.ndarray, "rows columns"]:
    """Return for each patch of a grid the smallest radius, but not below `radius`, with k rows.

    Args:
        places: Of the rows, at least k of them.
        grid: Rows and columns of patches.
        radius: 0 or more.
        k: 1 or more.
    """
    rows, columns = grid
    counts = np.zeros((rows + 1, columns + 1), np.int64)
    np.add.at(counts, (places[:, 0] + 1, places[:, 1] + 1), 1)
    sums = counts.cumsum(axis=0).cumsum(axis=1)
    y, x = np.mgrid[:rows, :columns]
    reaches = np.full(grid, radius, np.int64)
    while True:
        top, bottom = np.maximum(y - reaches, 0), np.minimum(y + reaches + 1, rows)
        left, right = np.maximum(x - reaches, 0), np.minimum(x + reaches + 1, columns)
        found = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        if (found >= k).all():
            return reaches
        reaches[found < k] += 1


def places_near(grid: tuple[int, int], radius: int) -> Int64[np.ndarray, "cells near"]:
    """Return for each patch of a grid the numbers of those within the radius, and then -1.

    There are at most as many columns as patches, which is the most lists that faiss visits.
    """
    rows, columns = grid
    down, across = min(radius, rows - 1), min(radius, columns - 1)
    y = np.arange(rows)[:, None, None, None] + np.arange(-down, down + 1)[:, None]
    x = np.arange(columns)[:, None, None] + np.arange(-across, across + 1)
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    near = np.where(inside, y * columns + x, -1).reshape(rows * columns, -1)
    near = -np.sort(-near, axis=1)
    return np.ascontiguousarray(near[:, (near >= 0).any(axis=0)])
