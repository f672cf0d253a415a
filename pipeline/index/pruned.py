"""Exact nearest neighbours with most of the bank ruled out by lower bounds.

The queries go through the bank in blocks, and the bank is taken in tiles. For a block and a tile
(`pipeline.index.sieve`):

1. *Bound*: one product of bytes gives lower bounds on all distances (`pipeline.index.bounds`).
2. *Limit*: the rows with the lowest bounds are measured. The k-th smallest distance of a query that
   has been measured so far is its limit: pairs whose bound is above it are ruled out.
3. *Sieve*: the pairs that are left are bounded again, by coordinates that are not rounded to bytes.

After the last tile, the pairs that are left are measured in float32. Those that may be among the
nearest are measured in float64 by `exact.measured`, where the dense search ends, too: the results
are the same to the bit.

A block of which too many pairs are left goes to the dense search. The number of components, the
blocks and the threads can change the time and nothing else.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from patchlake.pipeline.index.bounds import BankCoordinates, Projection, principal_directions
from patchlake.pipeline.index.exact import ExactSearch, check_asked, measured
from patchlake.pipeline.index.sieve import QUERIES, TILE, Block
from patchlake.pipeline.index.threads import BlockThreads

# The largest share of a block's pairs that may be left to be measured. A pair costs 8 ns in the
# dense product of 384 dimensions and 100 ns when it is measured: at this share, 2 ns on average.
_MAX_LEFT = 1 / 50


@dataclass(frozen=True)
class PrunedSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    dense: ExactSearch
    components: int
    _projection: Projection | None
    _bank: BankCoordinates | None
    _threads: BlockThreads

    @classmethod
    def over(
        cls,
        dense: ExactSearch,
        components: int,
        *,
        threads: int | None = None,
        principal: Float64[np.ndarray, "dim dim"] | None = None,
    ) -> "PrunedSearch":
        """Return a search over the bank of a dense one.

        Beside the dense search it takes 5 bytes for each bank row and component, and 7 MB a thread.

        Args:
            dense: Takes the blocks of which the bounds rule out too little.
            components: Principal directions that the bound uses, at most dim; with 0 every block
                goes to the dense search.
            threads: Blocks searched at a time; None is as many as torch would use.
            principal: The `principal_directions` of the bank, if they are known.
        """
        block_threads = BlockThreads(threads or torch.get_num_threads())
        if components == 0:
            return cls(dense, 0, None, None, block_threads)
        bank = dense.bank
        directions = principal_directions(bank)[0] if principal is None else principal
        projection = Projection.onto(bank, directions, min(components, bank.shape[1]))
        coordinates = projection.of_bank(bank).as_bank()
        return cls(dense, components, projection, coordinates, block_threads)

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return self.dense.size

    @property
    def tried(self) -> int:
        """Queries that keep all threads busy once: enough to time a search by."""
        return QUERIES * self._threads.count

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        return self.dense.vectors(rows)

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `ExactSearch.nearest` returns, to the bit.

        Takes O(queries * bank * components) products of bytes, and O(dim) for each pair that the
        bounds do not rule out.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        check_asked(self.dense.bank, queries.shape[1], k, ignore)
        if self._bank is None or self._projection is None:
            return self.dense.nearest(queries, k, ignore=ignore)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        blocks = _blocks(len(queries), self._threads.count)
        results = self._threads.map(
            lambda block: self._block(np.ascontiguousarray(queries[block]), k, ignore), blocks
        )
        for block, (block_distances, block_rows) in zip(blocks, results, strict=True):
            distances[block], rows[block] = block_distances, block_rows
        return distances, rows

    def _block(
        self, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        pairs = self._survivors(queries, k, ignore)
        if pairs is None:
            return self.dense.nearest(queries, k, ignore=ignore)
        query, row = pairs
        return measured(queries, self.dense.bank, query, row, k)

    def _survivors(
        self, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pairs that may be among the k nearest, ordered by query, as (query, row).

        None if too many pairs are left, so that the block is better searched densely.
        """
        assert self._bank is not None
        assert self._projection is not None
        block = Block(self._projection, self._bank, self.dense.bank, queries, k)
        found = []
        count = 0
        tiles = np.linspace(0, self.size, -(-self.size // TILE) + 1).astype(np.int64)
        for begin, end in pairwise(tiles):
            inside = None
            if ignore is not None:
                inside = ignore[(ignore >= begin) & (ignore < end)] - begin
            pairs = block.tile(int(begin), int(end), inside)
            if pairs is None:
                return None
            found.append(pairs)
            count += len(pairs[0])
            if count > _MAX_LEFT * len(queries) * self.size + 8 * k * len(queries):
                return None
        query, row, bound = (np.concatenate(column) for column in zip(*found, strict=True))
        return block.nearest(query, row, bound)


def _blocks(queries: int, threads: int) -> list[slice]:
    """Return blocks of about equal size, at most `QUERIES` queries each.

    Their number is a multiple of that of the threads where there are queries enough.
    """
    count = -(-queries // (threads * QUERIES)) * threads
    edges = np.unique(np.linspace(0, queries, count + 1).astype(np.int64))
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]
