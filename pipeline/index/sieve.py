"""One block of queries on its way through the bank, tile by tile: see `pipeline.index.pruned`."""

from threading import local

import faiss
import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from patchlake.pipeline.index.bounds import NEVER, Coordinates, Projection, multiply

# Queries of a block, of which 784 are an image of 28 x 28 patches, and bank rows of a tile: with
# tiles of half as many, 10,000 rows take 1.06 times as long.
QUERIES, TILE = 784, 10240
# Scores of one product, each of which is read twice: 128 x 10240 int32 = 5 MB a thread. Those of a
# whole block would not stay in the cache that a machine's processes share.
_SCORES = 128 * TILE
# Where k > 1, one of so many columns is a candidate for the limit.
_GROUP = 16
# Of a tile's pairs: a pair costs 8 ns in the dense product of 384 dimensions and 15 ns in the
# sieve, so at this share 4 ns.
_MANY = 1 / 4
_UNIT = 2.0**-24


class Block:
    """A block of queries on its way through the tiles of the bank."""

    def __init__(
        self,
        projection: Projection,
        bank: Coordinates,
        vectors: np.ndarray,
        queries: np.ndarray,
        k: int,
    ) -> None:
        self._projection = projection
        self._bank = bank
        self._vectors = vectors
        self._queries = queries
        self._k = k
        self._coordinates = projection.of_queries(queries)
        # Times the bank's bytes: half the row's squared length less the product, in one product.
        self._bytes = np.full((len(queries), bank.bytes.shape[1]), 127, np.int8)
        np.negative(self._coordinates.bytes, out=self._bytes[:, : bank.exact.shape[1]])
        self._bytes[:, -1] = 1
        drift = self._coordinates.drift + bank.drift.max()
        self._drift = drift
        self._slack = drift + self._coordinates.error + bank.error.max()
        # Upper bounds on the k smallest squared distances so far.
        self._best = np.full((len(queries), k), np.inf)
        # The largest scores of a row within the limit.
        self._threshold = self._highest_within(slice(None))

    @property
    def _limit(self) -> Float64[np.ndarray, " queries"]:
        return self._best[:, -1]

    def tile(
        self, begin: int, end: int, ignore: Int64[np.ndarray, " ignored"] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return (query, row, bound) of what a tile leaves, by query; None if it is too much."""
        queries, width = len(self._queries), end - begin
        parts = -(-queries // (_SCORES // width))
        step = -(-queries // parts)
        found: list[np.ndarray] = []
        count = 0
        for first in range(0, queries, step):
            near = self._part(slice(first, first + step), begin, end, ignore)
            count += len(near)
            if count > _MANY * queries * width + 8 * self._k * queries:
                return None
            found.append(near + first * width)
        near = np.concatenate(found)
        query = near // width
        row = near - query * width + begin
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
            limit = np.minimum.reduceat(distance, first).astype(np.float64) * rounding + 1e-35
        near = np.flatnonzero(distance <= (limit * rounding)[query])
        return query[near], row[near]

    def _part(
        self, part: slice, begin: int, end: int, ignore: np.ndarray | None
    ) -> Int64[np.ndarray, " pairs"]:
        """Return the pairs of some queries and a tile within the limit, as flat indices."""
        shape = len(self._bytes[part]), end - begin
        scores, mask = _buffers(shape)
        # |s i(q) - s i(c)|^2 = s^2 (|i(q)|^2 + |i(c)|^2 - 2 i(q) i(c)), of which this is half the
        # last two, rounded down, less what is usual.
        multiply(self._bytes[part], self._bank.bytes[begin:end], scores)
        if ignore is not None:
            scores[:, ignore] = NEVER
        self._lower_limit(part, scores, begin)
        np.less_equal(scores, self._threshold[part, None], out=mask)
        return _few(mask)

    def _lower_limit(
        self, part: slice, scores: Int32[np.ndarray, "queries tile"], begin: int
    ) -> None:
        """Measure the rows with the lowest bounds, where that can lower the limit."""
        candidates = _lowest(scores, self._k)
        lowest = np.take_along_axis(scores, candidates, axis=1)
        near = np.flatnonzero(lowest <= self._threshold[part, None])
        query, number = np.divmod(near, lowest.shape[1])
        row = candidates[query, number] + begin
        # A sum of d squares of differences errs by at most (d + 2) 2^-24 of itself, and by less
        # than 1e-35 where it underflows.
        rounding = 1 + (self._queries.shape[1] + 3) * _UNIT
        distances = np.full(candidates.shape, np.inf)
        direct = _squared(self._queries[part], query, self._vectors, row)
        distances[query, number] = direct * rounding + 1e-35
        best = self._best[part]
        if self._k == 1:
            np.minimum(best, distances, out=best)
        else:
            best[:] = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, : self._k]
        self._threshold[part] = self._highest_within(part)

    def _highest_within(self, part: slice) -> Int32[np.ndarray, " queries"]:
        """Return the largest score of a row within the limit, of some queries."""
        reach = (np.sqrt(self._limit[part]) + self._slack[part]) / self._projection.step
        score = (reach * reach * (1 + 1e-9) - self._coordinates.squared[part]) / 2 + 1
        score -= self._projection.usual
        capped: np.ndarray = np.minimum(score, NEVER - 1).astype(np.int32)
        return capped

    def _sieve(self) -> Float64[np.ndarray, " queries"]:
        """Return the largest squared distance, in coordinates, of a row within the limit."""
        reach = np.sqrt(self._limit) + self._drift
        rounding = 1 + (self._coordinates.exact.shape[1] + 3) * _UNIT
        sieve: np.ndarray = reach * reach * rounding + 1e-35
        return sieve


def _few(mask: np.ndarray) -> Int64[np.ndarray, " found"]:
    """Return `np.flatnonzero` of a mask with few True, in half of the time."""
    flat = mask.reshape(-1)
    whole = len(flat) - len(flat) % 8
    words = flat[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[some].view(bool))
    found: np.ndarray = np.append(
        some[inside >> 3] * 8 + (inside & 7), whole + np.flatnonzero(flat[whole:])
    )
    return found


def _lowest(scores: np.ndarray, k: int) -> Int64[np.ndarray, "queries candidates"]:
    """Return columns of low scores, at most k different ones of each query."""
    if k == 1:
        best: np.ndarray = scores.argmin(axis=1)[:, None]
        return best
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
    faiss.pairwise_indexed_L2sqr(  # type: ignore[attr-defined] # it is added when faiss is loaded
        left.shape[1],
        len(left_rows),
        *(faiss.swig_ptr(array) for array in (left, left_rows, right, right_rows, squared)),
    )
    return squared


# Memory that is new costs a page fault every 4 KB.
_local = local()


def _buffers(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's scores and mask of a part and a tile, 7 MB in all."""
    if not hasattr(_local, "buffers"):
        _local.buffers = np.empty(_SCORES, np.int32), np.empty(_SCORES, bool)
    scores, mask = (buffer[: shape[0] * shape[1]].reshape(shape) for buffer in _local.buffers)
    return scores, mask
