"""Exact nearest neighbours with most of the bank ruled out by lower bounds.

For a block of queries and a tile of the bank that stay in the cache:

1. *Bound*: one product of bytes gives lower bounds on all distances (`pipeline.index.bounds`).
2. *Limit*: the rows with the lowest bounds are measured; the k-th smallest distance of a query so
   far is its limit, and pairs with a bound above it are out.
3. *Sieve*: the others are bounded again, by coordinates that are not rounded to bytes.
4. After the last tile what is left is measured in float32, and what can be among the nearest ends
   in `exact.measured`, as in the dense search: the results are the same to the bit.

A block of which too many pairs survive goes to the dense search. The number of components, the
blocks and the threads can change the time and nothing else.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64

from pipeline.index.bounds import (
    NEVER,
    Coordinates,
    Projection,
    multiply,
    principal_directions,
)
from pipeline.index.exact import ExactSearch, check_asked, measured

# Queries x bank rows of one product: 392 x 5120 int32 = 8 MiB a thread, which stays in the cache
# for the passes over it; half an image of 28 x 28 patches.
_QUERIES, _TILE = 392, 5120
# Where k > 1, one of so many columns is a candidate for the limit.
_GROUP = 16
# Shares of pairs at which a block goes dense. At 384 dimensions a pair costs 8 ns in the dense
# product, 15 ns in the sieve and 100 ns when it is measured: at these shares 4 and 2 ns.
_MANY_IN_TILE, _MANY_MEASURED = 1 / 4, 1 / 50
_UNIT = 2.0**-24


@dataclass(frozen=True)
class PrunedSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    dense: ExactSearch
    components: int
    _projection: Projection | None
    _bank: Coordinates | None
    _pool: ThreadPoolExecutor
    _threads: int

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

        Beside that it holds 5 bytes a row and component.

        Args:
            dense: For the blocks that cannot be pruned.
            components: Principal directions of the bound, at most dim; 0 is the dense search.
            threads: Blocks at a time; None is as many as torch would use.
            principal: `principal_directions` of the bank, if they are known.
        """
        threads = threads or torch.get_num_threads()
        # Each block on one thread: what faiss and torch would start of their own would fight.
        pool = ThreadPoolExecutor(threads, initializer=_use_one_thread)
        if components == 0:
            return cls(dense, 0, None, None, pool, threads)
        bank = dense.bank
        directions = principal_directions(bank) if principal is None else principal
        projection = Projection.onto(bank, directions, min(components, bank.shape[1]))
        return cls(dense, components, projection, projection.of_bank(bank), pool, threads)

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return self.dense.size

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

        O(queries * bank * components) bytes, and O(dim) for each pair that survives the bound.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        check_asked(self.dense.bank, queries, k, ignore)
        if self._bank is None or self._projection is None:
            return self.dense.nearest(queries, k, ignore=ignore)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        blocks = _blocks(len(queries), self._threads)
        results = self._pool.map(
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
        """Return the pairs that can be among the nearest, by query; None if they are too many."""
        assert self._bank is not None
        assert self._projection is not None
        block = _Block(self._projection, self._bank, self.dense.bank, queries, k)
        found = []
        count = 0
        tiles = np.linspace(0, self.size, -(-self.size // _TILE) + 1).astype(np.int64)
        for begin, end in zip(tiles[:-1], tiles[1:], strict=True):
            inside = None
            if ignore is not None:
                inside = ignore[(ignore >= begin) & (ignore < end)] - begin
            pairs = block.tile(int(begin), int(end), inside)
            if pairs is None:
                return None
            found.append(pairs)
            count += len(pairs[0])
            if count > _MANY_MEASURED * len(queries) * self.size + 8 * k * len(queries):
                return None
        query, row, bound = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return block.nearest(query, row, bound)


class _Block:
    """A block of queries on its way through the tiles of the bank."""

    def __init__(
        self,
        projection: Projection,
        bank: Coordinates,
        vectors: np.ndarray,
        queries: np.ndarray,
        k: int,
    ) -> None:
        self._step = projection.step
        self._bank = bank
        self._vectors = vectors
        self._queries = queries
        self._k = k
        self._coordinates = projection.of_queries(queries)
        drift = self._coordinates.drift + bank.drift.max()
        self._drift = drift
        self._slack = drift + self._coordinates.error + bank.error.max()
        # Upper bounds on the k smallest squared distances so far.
        self._best = np.full((len(queries), k), np.inf)
        self._scores, self._mask = _buffers()

    @property
    def _limit(self) -> Float64[np.ndarray, " queries"]:
        return self._best[:, -1]

    def tile(
        self, begin: int, end: int, ignore: Int64[np.ndarray, " ignored"] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return (query, row, bound) of what a tile leaves, by query; None if it is too much."""
        width = end - begin
        count = len(self._queries) * width
        shape = (len(self._queries), width)
        scores, mask = self._scores[:count].reshape(shape), self._mask[:count].reshape(shape)
        multiply(self._coordinates.bytes, self._bank.bytes[begin:end], scores)
        # |s i(q) - s i(c)|^2 = s^2 (|i(q)|^2 + |i(c)|^2 - 2 i(q) i(c)); halves are rounded down.
        np.subtract(self._bank.squared[begin:end] // 2, scores, out=scores)
        if ignore is not None:
            scores[:, ignore] = NEVER
        self._lower_limit(scores, begin)
        np.less_equal(scores, self._threshold()[:, None], out=mask)
        near = np.flatnonzero(mask)
        if len(near) > _MANY_IN_TILE * mask.size + 8 * self._k * len(mask):
            return None
        query, row = np.divmod(near, width)
        row += begin
        bound = _squared(self._coordinates.exact, query, self._bank.exact, row)
        kept = np.flatnonzero(bound <= self._sieve()[query])
        return query[kept], row[kept], bound[kept]

    def nearest(
        self, query: np.ndarray, row: np.ndarray, bound: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pairs, by query, that float32 cannot tell from the k nearest."""
        if not np.isfinite(self._limit).all():
            return None
        # The limits are lower now than when the first tiles were sieved.
        kept = np.flatnonzero(bound <= self._sieve()[query])
        kept = kept[np.argsort(query[kept], kind="stable")]
        query, row = query[kept], row[kept]
        distance = _squared(self._queries, query, self._vectors, row)
        limit = self._limit
        rounding = 1 + (self._queries.shape[1] + 3) * _UNIT
        if self._k == 1:
            first = np.searchsorted(query, np.arange(len(self._queries)))
            limit = np.minimum.reduceat(distance, first).astype(np.float64) * rounding
        near = np.flatnonzero(distance <= (limit * rounding)[query])
        return query[near], row[near]

    def _lower_limit(self, scores: Int32[np.ndarray, "queries tile"], begin: int) -> None:
        """Measure the rows with the lowest bounds, where that can lower the limit."""
        candidates = _lowest(scores, self._k)
        lowest = np.take_along_axis(scores, candidates, axis=1)
        near = np.flatnonzero(lowest <= self._threshold()[:, None])
        query, number = np.divmod(near, lowest.shape[1])
        row = candidates[query, number] + begin
        # A sum of d squares of differences errs by at most (d + 2) 2^-24 of itself, and by less
        # than 1e-35 where it underflows.
        rounding = 1 + (self._queries.shape[1] + 3) * _UNIT
        distances = np.full(candidates.shape, np.inf)
        direct = _squared(self._queries, query, self._vectors, row)
        distances[query, number] = direct * rounding + 1e-35
        if self._k == 1:
            np.minimum(self._best, distances, out=self._best)
        else:
            both = np.concatenate([self._best, distances], axis=1)
            self._best = np.sort(both, axis=1)[:, : self._k]

    def _threshold(self) -> Int32[np.ndarray, " queries"]:
        """Return the largest score of a row within the limit."""
        reach = (np.sqrt(self._limit) + self._slack) / self._step
        score = (reach * reach * (1 + 1e-9) - self._coordinates.squared) / 2 + 1
        capped: np.ndarray = np.minimum(score, NEVER - 1).astype(np.int32)
        return capped

    def _sieve(self) -> Float64[np.ndarray, " queries"]:
        """Return the largest squared distance, in coordinates, of a row within the limit."""
        reach = np.sqrt(self._limit) + self._drift
        rounding = 1 + (self._coordinates.exact.shape[1] + 3) * _UNIT
        sieve: np.ndarray = reach * reach * rounding + 1e-35
        return sieve


def _blocks(queries: int, threads: int) -> list[slice]:
    """Return equal blocks, a multiple of the threads, none larger than `_QUERIES`."""
    count = -(-queries // (threads * _QUERIES)) * threads
    edges = np.unique(np.linspace(0, queries, count + 1).astype(np.int64))
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _lowest(scores: np.ndarray, k: int) -> Int64[np.ndarray, "queries candidates"]:
    """Return columns of low scores, at most k different ones of each query."""
    if k == 1:
        return scores.argmin(axis=1)[:, None]
    # A partition of all columns takes as long as the dense search.
    queries, width = scores.shape
    group = min(_GROUP, max(1, width // k))
    groups = width // group
    grouped = scores[:, : groups * group].reshape(queries, group, groups)
    lowest = grouped.min(axis=1)
    few = min(k, groups)
    chosen = np.argpartition(lowest, few - 1, axis=1)[:, :few]
    member = np.take_along_axis(grouped, chosen[:, None, :], axis=2).argmin(axis=1)
    columns: np.ndarray = member * groups + chosen
    return columns


def _squared(
    left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray
) -> Float32[np.ndarray, " pairs"]:
    """Return squared distances of pairs of float32 rows, by direct differences.

    faiss takes 10 ns a pair of 65 dimensions and 100 ns of 384; numpy's gather 10 times that.
    """
    squared = np.empty(len(left_rows), np.float32)
    faiss.pairwise_indexed_L2sqr(
        left.shape[1],
        len(left_rows),
        *(faiss.swig_ptr(array) for array in (left, left_rows, right, right_rows, squared)),
    )
    return squared


# Memory that is new costs a page fault every 4 KB: 3 ms of 18 for an image and 10,000 rows.
_local = local()


def _buffers() -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's scores and mask of a block and tile, 10 MB in all."""
    if not hasattr(_local, "buffers"):
        count = _QUERIES * _TILE
        _local.buffers = np.empty(count, np.int32), np.empty(count, bool)
    buffers: tuple[np.ndarray, np.ndarray] = _local.buffers
    return buffers


def _use_one_thread() -> None:
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
