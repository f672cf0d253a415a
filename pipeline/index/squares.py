"""Candidates among the bank rows of places near a query's, by products: for many rows.

Queries of the same square of the grid are compared together. The rows are kept in columns of the
grid as wide as a square, and in each from above to below, so that what is near a square is one
range of rows in each of a few columns. A row that is near one query of the square and not another
is left out of the other's. The bounds of the pruned search (`pipeline.index.sieve`) rule most rows
out; where they rule out too little, or the rows have too few dimensions for them, all that are near
are ranked by a product of float32, as in `pipeline.index.exact`.

Bands over all rows of the grid, each with one range, take longer: what they leave out of each query
costs more than the fewer products save.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int64

from patchlake.pipeline.index.bounds import (
    BankCoordinates,
    Projection,
    principal_directions,
)
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.sieve import QUERIES, TILE, Block

# Patches of a side of a square.
_SIDE = 7
# Principal directions of the bounds; `pipeline.index.choose` takes 32 to 128 with most networks.
_COMPONENTS = 64
# Queries x rows of one product: 4 M float32 = 16 MiB.
_PRODUCT = 4 * 2**20
# The largest share of the pairs that may be left to be measured, as in the pruned search.
_MAX_LEFT = 1 / 50


@dataclass(frozen=True)
class _Near:
    """Queries of one square, and the kept rows that may be near them."""

    # Numbers among all queries.
    queries: Int64[np.ndarray, " some"]
    # Ranges of kept rows, (begin, end).
    ranges: Sequence[tuple[int, int]]
    # By place: which of the rows of all ranges are left out. And the place of each query.
    beyond: Bool[np.ndarray, "places near"]
    place: Int64[np.ndarray, " some"]


@dataclass(frozen=True)
class Squares:
    """The rows of a bank, kept by column of squares. Build it with `over`."""

    grid: tuple[int, int]
    # The bank rows in the order in which they are kept, and in that order their places and values.
    order: Int64[np.ndarray, " bank"]
    places: Int64[np.ndarray, "bank 2"]
    rows: Float32[np.ndarray, "bank dim"]
    # Of each column of squares, and of each y and one more: the first row that is there or below.
    begins: Int64[np.ndarray, "columns rows_1"]
    projection: Projection | None
    coordinates: BankCoordinates | None

    @classmethod
    def over(
        cls,
        bank: Float32[np.ndarray, "bank dim"],
        places: Int64[np.ndarray, "bank 2"],
        grid: tuple[int, int],
    ) -> "Squares":
        """Return the rows of a bank in squares: a copy of it, and bounds of 5 bytes a component."""
        strips = places[:, 1] // _SIDE
        order = np.lexsort((places[:, 1], places[:, 0], strips))
        keys = (strips * grid[0] + places[:, 0])[order]
        columns = -(-grid[1] // _SIDE)
        begins = np.searchsorted(keys, np.arange(columns * grid[0] + 1))
        by_column = np.column_stack([begins[:-1].reshape(columns, -1), begins[grid[0] :: grid[0]]])
        rows, projection, coordinates = bank[order], None, None
        if bank.shape[1] > _COMPONENTS:
            directions = principal_directions(bank)[0]
            projection = Projection.onto(bank, directions, _COMPONENTS)
            coordinates = projection.of_bank(rows).as_bank()
        return cls(grid, order, places[order], rows, by_column, projection, coordinates)

    def candidates(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        places: Int64[np.ndarray, "queries 2"],
        reaches: Int64[np.ndarray, " queries"],
        k: int,
        ignore: Int64[np.ndarray, " ignored"] | None,
    ) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
        """Return pairs of a query and a bank row that hold the k nearest of each query.

        Args:
            queries: In the units of the bank.
            places: Their y and x.
            reaches: The radius of each, in which there are k rows that are not ignored.
            k: At least 1.
            ignore: Bank rows to leave out.
        """
        ignored = np.zeros(len(self.order), bool)
        if ignore is not None:
            ignored[ignore] = True
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for near in self._squares(places, reaches, ignored[self.order]):
            some = np.ascontiguousarray(queries[near.queries])
            pairs = self._sieved(some, near, k)
            query, kept = self._ranked(some, near, k) if pairs is None else pairs
            found.append((near.queries[query], self.order[kept]))
        query, row = (np.concatenate(column) for column in zip(*found, strict=True))
        return query, row

    def _squares(
        self, places: np.ndarray, reaches: np.ndarray, ignored: np.ndarray
    ) -> Iterator[_Near]:
        """Yield the queries of each square, as many of them as are compared together."""
        squares = places[:, 0] // _SIDE * self.grid[1] + places[:, 1] // _SIDE
        order = np.argsort(squares, kind="stable")
        for square in np.split(order, np.flatnonzero(np.diff(squares[order])) + 1):
            for first in range(0, len(square), QUERIES):
                some = square[first : first + QUERIES]
                keys = places[some, 0] * self.grid[1] + places[some, 1]
                # Queries of one place have one radius.
                _, first_at, place = np.unique(keys, return_index=True, return_inverse=True)
                told = np.column_stack([places[some], reaches[some]])[first_at]
                ranges = self._ranges(told[:, :2], told[:, 2:])
                near = np.concatenate([self.places[begin:end] for begin, end in ranges])
                out = np.concatenate([ignored[begin:end] for begin, end in ranges])
                # Of 16 bits a processor compares many at once.
                y, x, reach = told.astype(np.int16).T[..., None]
                near_y, near_x = near.astype(np.int16).T
                beyond = np.abs(y - near_y) > reach
                beyond |= np.abs(x - near_x) > reach
                yield _Near(some, ranges, beyond | out, place)

    def _ranges(self, places: np.ndarray, reaches: np.ndarray) -> list[tuple[int, int]]:
        top, left = (places - reaches).min(axis=0).clip(min=0).tolist()
        bottom, right = np.minimum((places + reaches).max(axis=0), np.array(self.grid) - 1).tolist()
        columns = self.begins[left // _SIDE : right // _SIDE + 1]
        return [(int(column[top]), int(column[bottom + 1])) for column in columns]

    def _sieved(
        self, queries: np.ndarray, near: _Near, k: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pairs that bounds leave; None where these are too many, or there are none."""
        if self.projection is None or self.coordinates is None:
            return None
        block = Block(self.projection, self.coordinates, self.rows, queries, k)
        found, count, filled = [], 0, 0
        most = _MAX_LEFT * near.beyond.shape[1] * len(queries) + 8 * k * len(queries)
        for first, last in near.ranges:
            edges = np.linspace(first, last, -(-(last - first) // TILE) + 1).astype(int).tolist()
            for begin, end in pairwise(edges):
                beyond = near.beyond[:, filled : filled + end - begin]
                filled += end - begin
                pairs = block.tile(begin, end, None, beyond=(beyond, near.place))
                if pairs is None:
                    return None
                found.append(pairs)
                count += len(pairs[0])
                if count > most:
                    return None
        query, row, bound = (np.concatenate(column) for column in zip(*found, strict=True))
        return block.nearest(query, row, bound)

    def _ranked(self, queries: np.ndarray, near: _Near, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that a product of float32 leaves."""
        numbers = np.concatenate([np.arange(*one) for one in near.ranges])
        search = ExactSearch.over(self.rows[numbers])
        size = max(1, _PRODUCT // search.size)
        pairs = []
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            query, row = search.possible(queries[block], k, near.beyond[near.place[block]])
            pairs.append((query + begin, numbers[row]))
        query, row = (np.concatenate(column) for column in zip(*pairs, strict=True))
        return query, row
