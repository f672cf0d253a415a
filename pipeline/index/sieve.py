"""Rule out bank rows for one block of queries, one tile of the bank after the other.

`pipeline.index.pruned` describes the steps, `pipeline.index.bounds` the lower bound that they use.
The integer that decides first is a pair's *estimate*, which a product of bytes gives:

    estimate(q, c) = |b(c)|^2 / 2 - b(q).b(c) - half_offset

with b(x) the bytes of x, and the half rounded down. For one query it rises with the bound: step^2
times (|b(q)|^2 + 2 (estimate + half_offset)) is (step |b(q) - b(c)|)^2, or a little less.
"""

from threading import local

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from patchlake.pipeline.index.bounds import NEVER, BankCoordinates, Projection
from patchlake.pipeline.index.products import multiply

# Queries of a block (an image of 28 x 28 patches has 784), and bank rows of a tile. With tiles of
# half as many rows, a search among 10,000 rows takes 1.06 times as long.
QUERIES, TILE = 784, 10240
# Estimates computed by one product: 128 x 10240 int32 = 5 MB a thread. Each is read twice, and the
# estimates of a whole block would not stay in the cache that all processes of a machine share.
_ESTIMATES = 128 * TILE
# Where k > 1, only the lowest estimate of so many columns is a candidate for the limit.
_GROUP = 16
# The largest share of a tile's pairs that the bytes may leave. A pair costs 8 ns in the dense
# product of 384 dimensions, and 15 ns once the bytes have left it: at this share, 4 ns on average.
_MAX_LEFT = 1 / 4
# Truth values (places, rows of a tile), and of each query of a block the number of its place.
Beyond = tuple[Bool[np.ndarray, "places tile"], Int64[np.ndarray, " queries"]]
# Half the distance from 1 to the next float32: the relative error of one operation.
_UNIT = 2.0**-24


class Block:
    """The search for the k nearest bank rows of a block of queries.

    Call `tile` for each tile of the bank, then `nearest` once with all pairs that the tiles left.
    """

    def __init__(
        self,
        projection: Projection,
        bank: BankCoordinates,
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
        # The product with the bank's bytes is the estimate: -b(q), and the factors of the extra
        # bytes (see `Coordinates`).
        self._bytes = np.full((len(queries), bank.bytes.shape[1]), 127, np.int8)
        np.negative(self._coordinates.bytes, out=self._bytes[:, : bank.floats.shape[1]])
        self._bytes[:, -1] = 1
        # By how much the distances of a query's floats, and of its bytes, from those of any row may
        # exceed the true distance.
        float_error = self._coordinates.float_error + bank.float_error
        self._float_error = float_error
        self._byte_error = float_error + self._coordinates.byte_error + bank.byte_error
        # Upper bounds on the k smallest squared distances of each query so far.
        self._best = np.full((len(queries), k), np.inf)
        # Rows whose estimates are higher than this, for a query, are farther than its limit.
        self._threshold = self._highest_estimate(slice(None))

    @property
    def _limit(self) -> Float64[np.ndarray, " queries"]:
        """An upper bound on the squared distance to the k-th nearest row of each query."""
        return self._best[:, -1]

    def tile(
        self,
        begin: int,
        end: int,
        ignore: Int64[np.ndarray, " ignored"] | None,
        *,
        beyond: "Beyond | None" = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return the pairs that a tile leaves, ordered by query; None if they are too many.

        Args:
            begin: The tile's first bank row.
            end: The row behind its last.
            ignore: Rows to leave out, counted from `begin`.
            beyond: More to leave out, of each query others.

        Returns:
            Of each pair: the number of the query in the block, the bank row, and the lower bound on
            the squared distance that the coordinates give as floats.
        """
        queries, width = len(self._queries), end - begin
        chunks = -(-queries // (_ESTIMATES // width))
        step = -(-queries // chunks)
        found: list[np.ndarray] = []
        count = 0
        for first in range(0, queries, step):
            chunk = slice(first, first + step)
            out = None if beyond is None else beyond[0][beyond[1][chunk]]
            near = self._near(chunk, begin, end, (ignore, out))
            count += len(near)
            if count > _MAX_LEFT * queries * width + 8 * self._k * queries:
                return None
            found.append(near + first * width)
        near = np.concatenate(found)
        query = near // width
        row = near - query * width + begin
        bound = _squared(self._coordinates.floats, query, self._bank.floats, row)
        kept = np.flatnonzero(bound <= self._largest_bound()[query])
        return query[kept], row[kept], bound[kept]

    def nearest(
        self, query: np.ndarray, row: np.ndarray, bound: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pairs that may be among the k nearest, ordered by query, as (query, row).

        The pairs are measured in float32. Those are left whose distance, given its rounding, may be
        one of the k smallest; `exact.measured` decides among them. None if a query has met fewer
        than k rows that can be compared.

        Args:
            query: Of each pair that the tiles left, in any order.
            row: Its bank row.
            bound: Its lower bound.
        """
        if not np.isfinite(self._limit).all():
            return None
        # The limits are lower now than they were at the first tiles.
        kept = np.flatnonzero(bound <= self._largest_bound()[query])
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

    def _near(
        self,
        chunk: slice,
        begin: int,
        end: int,
        left_out: tuple[np.ndarray | None, np.ndarray | None],
    ) -> Int64[np.ndarray, " pairs"]:
        """Return the pairs of some queries and a tile whose estimates are within the threshold.

        They are indices into the flattened estimates of those queries and the tile. Left out are
        some rows, and some pairs.
        """
        ignore, out = left_out
        shape = len(self._bytes[chunk]), end - begin
        estimates, mask = _buffers(shape)
        multiply(self._bytes[chunk], self._bank.bytes[begin:end], estimates)
        if ignore is not None:
            estimates[:, ignore] = NEVER
        if out is not None:
            np.copyto(estimates, NEVER, where=out)
        self._lower_limit(chunk, estimates, begin)
        np.less_equal(estimates, self._threshold[chunk, None], out=mask)
        return _flatnonzero(mask)

    def _lower_limit(
        self, chunk: slice, estimates: Int32[np.ndarray, "queries tile"], begin: int
    ) -> None:
        """Measure rows of low estimates, and lower the limits and thresholds accordingly."""
        candidates = _low_columns(estimates, self._k)
        lowest = np.take_along_axis(estimates, candidates, axis=1)
        near = np.flatnonzero(lowest <= self._threshold[chunk, None])
        query, number = np.divmod(near, lowest.shape[1])
        row = candidates[query, number] + begin
        # A float32 sum of the squares of d differences errs by at most (d + 2) 2^-24 of itself, and
        # by less than 1e-35 where it underflows.
        rounding = 1 + (self._queries.shape[1] + 3) * _UNIT
        distances = np.full(candidates.shape, np.inf)
        direct = _squared(self._queries[chunk], query, self._vectors, row)
        distances[query, number] = direct * rounding + 1e-35
        best = self._best[chunk]
        if self._k == 1:
            np.minimum(best, distances, out=best)
        else:
            best[:] = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, : self._k]
        self._threshold[chunk] = self._highest_estimate(chunk)

    def _highest_estimate(self, chunk: slice) -> Int32[np.ndarray, " queries"]:
        """Return the highest estimate that a row within the limit can have, for some queries."""
        reach = (np.sqrt(self._limit[chunk]) + self._byte_error[chunk]) / self._projection.step
        # The 1e-9 is for the rounding of this in float64, the 1 for the cut to an integer.
        estimate = (reach * reach * (1 + 1e-9) - self._coordinates.squared[chunk]) / 2 + 1
        estimate -= self._projection.half_offset
        capped: np.ndarray = np.minimum(estimate, NEVER - 1).astype(np.int32)
        return capped

    def _largest_bound(self) -> Float64[np.ndarray, " queries"]:
        """Return the largest squared distance that a row within the limit can have in floats."""
        reach = np.sqrt(self._limit) + self._float_error
        rounding = 1 + (self._coordinates.floats.shape[1] + 3) * _UNIT
        bound: np.ndarray = reach * reach * rounding + 1e-35
        return bound


def _flatnonzero(mask: np.ndarray) -> Int64[np.ndarray, " found"]:
    """Return what `np.flatnonzero` does, in half the time where few values of the mask are True.

    Eight of them are looked at together, as one integer.
    """
    flat = mask.reshape(-1)
    whole = len(flat) - len(flat) % 8
    words = flat[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[some].view(bool))
    found: np.ndarray = np.append(
        some[inside >> 3] * 8 + (inside & 7), whole + np.flatnonzero(flat[whole:])
    )
    return found


def _low_columns(estimates: np.ndarray, k: int) -> Int64[np.ndarray, "queries candidates"]:
    """Return columns of low estimates, at most k different ones of each query.

    For k = 1 it is the column of the lowest estimate. For more, the columns are divided into
    groups, and of the lowest of each group the k lowest are taken: any k rows give a correct limit.
    """
    if k == 1:
        best: np.ndarray = estimates.argmin(axis=1)[:, None]
        return best
    # To find the k lowest of all columns (np.partition) takes as long as the dense search.
    queries, width = estimates.shape
    group = min(_GROUP, max(1, width // k))
    groups = width // group
    grouped = estimates[:, : groups * group].reshape(queries, group, groups)
    lowest = grouped.min(axis=1)
    few = min(k, groups)
    chosen = np.argpartition(lowest, few - 1, axis=1)[:, :few]
    member = np.take_along_axis(grouped, chosen[:, None, :], axis=2).argmin(axis=1)
    columns: np.ndarray = member * groups + chosen
    return columns


def _squared(
    left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray
) -> Float32[np.ndarray, " pairs"]:
    """Return the squared distances of pairs of float32 rows, by direct differences.

    faiss takes 10 ns for a pair of 65 dimensions and 100 ns for one of 384; numpy, which has to
    gather the rows first, takes 10 times as long.

    Args:
        left: Rows.
        left_rows: The number of each pair's row in `left`.
        right: Rows of as many dimensions.
        right_rows: The number of each pair's row in `right`.
    """
    squared = np.empty(len(left_rows), np.float32)
    faiss.pairwise_indexed_L2sqr(  # type: ignore[attr-defined] # it is added when faiss is loaded
        left.shape[1],
        len(left_rows),
        *(faiss.swig_ptr(array) for array in (left, left_rows, right, right_rows, squared)),
    )
    return squared


# Each thread uses its buffers again, because new memory costs a page fault for every 4 KB.
_local = local()


def _buffers(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's memory for estimates and a mask of a shape; it has 7 MB in all."""
    if not hasattr(_local, "buffers"):
        _local.buffers = np.empty(_ESTIMATES, np.int32), np.empty(_ESTIMATES, bool)
    estimates, mask = (buffer[: shape[0] * shape[1]].reshape(shape) for buffer in _local.buffers)
    return estimates, mask
