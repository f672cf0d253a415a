"""Rows of a greedy selection, each with its nearest centre so far and how far that is at most.

The part of `pipeline.maths.coreset` that is done where the rows are: its docstring says why it is
exact. Matrix products propose, direct differences decide.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from jaxtyping import Float32, Int64

# Rows in a pool: 2048 x 384 float32 are 3 MB, which stays in the cache for all of its picks.
POOL = 2048
# Rows x centres of one product of a flush: 1024 x 256 float32 = 1 MiB a thread, in the cache.
_BLOCK_ROWS, _BLOCK_CENTRES = 1024, 256
# Rows whose numbers are sorted at once: 2^18 x 36 bytes = 9 MB.
_FLUSHED_ROWS = 2**18
# Rows whose mean is near enough to that of all.
_AVERAGED = 4096
# Copying a block's rows costs as much as some ten centres.
_WORTH_DROPPING = 0.9


@dataclass(frozen=True)
class Farthest:
    """A shard's answer: its farthest rows, and how far its other rows are at most.

    Distances are squared. `tau` is 0 or more, and -1 where there are no others. `reach` bounds
    the distance of every row, for choosing a threshold.
    """

    rows: Float32[np.ndarray, "pool dim"]
    indices: Int64[np.ndarray, " pool"]
    distances: Float32[np.ndarray, " pool"]
    tau: float
    reach: float


class Shard:
    """Some of the rows, each with its nearest centre so far and how far that is at most."""

    def __init__(
        self,
        rows: Float32[np.ndarray, "rows dim"],
        *,
        pool: int = POOL,
        offset: int = 0,
        threads: int = 1,
    ) -> None:
        """Hold `rows`, whose global indices begin at `offset`; answer at most `pool` of them."""
        self._rows = rows
        self._offset = offset
        self._pool = pool
        self._threads = threads
        # Centred, because |x|^2 + |c|^2 - 2 x.c loses digits where the mean is far from zero. Any
        # point amid the rows will do.
        some = rows[:: 1 + len(rows) // _AVERAGED]
        self._mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._centres = _Centres(self._mean)
        self._scratch: SimpleQueue[_Scratch] = SimpleQueue()
        for _ in range(threads):
            self._scratch.put(_Scratch(rows.shape[1]))
        # 12 bytes a row. `bound` exceeds the distance to `nearest` by rounding at most, never less.
        self._bound = np.full(len(rows), np.inf, np.float32)
        self._nearest = np.zeros(len(rows), np.int32)
        self._seen = np.zeros(len(rows), np.int32)

    def farthest(self, centres: Float32[np.ndarray, "new dim"], threshold: float) -> Farthest:
        """Add centres; return the rows that are farther than the threshold, at most `pool`."""
        self._centres.extend(centres)
        self._flush(threshold)
        # In the first rounds these are nearly all rows: a mask takes less memory than numbers do.
        above = self._bound > threshold
        chosen, tau = None, -1.0
        if np.count_nonzero(above) > self._pool:
            bounds = self._bound[above]
            cut = len(bounds) - self._pool - 1
            bounds.partition(cut)
            tau = float(bounds[cut])
            chosen = np.flatnonzero(self._bound > tau)
            largest = float(self._measure(chosen).max(initial=0))
            if largest <= tau:
                # More rows than a pool are equally far, within rounding: measure all of them.
                # The lowest of the farthest is the next to be picked, and one is enough.
                near = np.flatnonzero(above & (self._bound >= largest))
                measured = self._measure(near)
                chosen, tau = near[measured.argmax()][None], float(measured.max())
        found = np.flatnonzero(above) if chosen is None else chosen
        return Farthest(
            rows=self._rows[found],
            indices=found + self._offset,
            distances=self._measure(found),
            tau=tau,
            reach=float(self._bound.max(initial=0)),
        )

    def farthest_since(
        self, first: int, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Farthest | None:
        """As `farthest`, and may be asked again: `centres` are those from number `first` on.

        None where earlier ones are lacking: this shard was started again.
        """
        known = self._centres.count - first
        return None if known < 0 else self.farthest(centres[known:], threshold)

    def take(self, index: int) -> Float32[np.ndarray, "found dim"]:
        """Return the row of a global index, or no row where it is another shard's."""
        local = index - self._offset
        is_here = 0 <= local < len(self._rows)
        row: np.ndarray = self._rows[local : local + 1] if is_here else self._rows[:0]
        return row

    def _measure(self, rows: Int64[np.ndarray, " some"]) -> Float32[np.ndarray, " some"]:
        """Replace bounds by direct differences to the nearest centre, and return them."""
        for begin in range(0, len(rows), _BLOCK_ROWS):
            block = rows[begin : begin + _BLOCK_ROWS]
            nearest = self._centres.plain[self._nearest[block]]
            self._bound[block] = squared_distances(self._rows[block], nearest)
        measured: np.ndarray = self._bound[rows]
        return measured

    def _flush(self, threshold: float) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            for begin in range(0, len(self._bound), _FLUSHED_ROWS):
                part = slice(begin, begin + _FLUSHED_ROWS)
                seen = self._seen[part]
                stale = (self._bound[part] > threshold) & (seen < self._centres.count)
                numbers = np.flatnonzero(stale)
                # Rows that have seen the same centres share a product.
                numbers = numbers[np.argsort(seen[numbers], kind="stable")] + begin
                size = _BLOCK_ROWS
                blocks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
                for _ in pool.map(self._flush_with_any, blocks, [threshold] * len(blocks)):
                    pass

    def _flush_with_any(self, block: Int64[np.ndarray, " block"], threshold: float) -> None:
        scratch = self._scratch.get()
        try:
            self._flush_block(block, threshold, scratch)
        finally:
            self._scratch.put(scratch)

    def _flush_block(
        self, block: Int64[np.ndarray, " block"], threshold: float, scratch: "_Scratch"
    ) -> None:
        """Measure rows against the centres that they have not seen, until they are near enough."""
        rows = scratch.take(self._rows, block)
        if self._centres.count == 1:
            # Nothing to choose between: the distance itself, without the detour of a product.
            rows -= self._centres.plain[0]
            self._bound[block] = squared_lengths(rows)
            self._seen[block] = 1
            return
        augmented = scratch.augment(rows, self._mean)
        norms = squared_norms(augmented[:, :-1])
        for begin in range(int(self._seen[block].min()), self._centres.count, _BLOCK_CENTRES):
            end = min(begin + _BLOCK_CENTRES, self._centres.count)
            product = scratch.product(augmented, self._centres.augmented[begin:end].T)
            self._lower(block, product, norms, begin)
            self._seen[block] = end
            # Most fall below the threshold on the way, and are spared the other centres.
            above = np.flatnonzero(self._bound[block] > threshold)
            if len(above) == 0:
                return
            if len(above) < _WORTH_DROPPING * len(block):
                block, norms = block[above], norms[above]
                augmented = scratch.take(augmented, above)

    def _lower(self, block: np.ndarray, product: np.ndarray, norms: np.ndarray, begin: int) -> None:
        """Lower a block's bounds by the distances to centres `begin` onwards.

        `product` is |c|^2 - 2 x.c, so that with `norms` it is the squared distance.
        """
        before = self._bound[block]
        error = product_error(norms, before, self._centres.largest_norm, len(self._mean))
        near = np.flatnonzero(product <= (before + error - norms)[:, None])
        if len(near) == 0:
            return
        # Most rows are far from all of some new centres: what follows is about the few others.
        row, centre = np.divmod(near, product.shape[1])
        proposed = product.ravel()[near] + norms[row]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        reached = row[first]
        row = np.repeat(np.arange(len(first)), np.diff(first, append=len(row)))
        block, before, error = block[reached], before[reached], error[reached]
        limit = np.minimum(np.minimum.reduceat(proposed, first) + error, before)
        possible = proposed <= (limit + error)[row]
        row, centre, proposed = row[possible], centre[possible], proposed[possible]
        # One candidate, new or old, is the nearest for certain. Several are measured.
        old = np.isfinite(before) & (before - 2 * error <= limit)
        contested = np.bincount(row, minlength=len(block)) + old > 1
        sure = ~contested[row]
        self._bound[block[row[sure]]] = (proposed + error[row])[sure]
        self._nearest[block[row[sure]]] = centre[sure] + begin
        kept = np.flatnonzero(contested & old)
        row = np.concatenate([kept, row[~sure]])
        centre = np.concatenate([self._nearest[block[kept]], centre[~sure] + begin])
        direct = squared_distances(self._rows[block[row]], self._centres.plain[centre])
        # The last write to a row counts: sort so that it is the nearest, and the first of equals.
        order = np.lexsort((-centre, -direct, row))
        self._bound[block[row[order]]] = direct[order]
        self._nearest[block[row[order]]] = centre[order]


class _Scratch:
    """Buffers of one thread: new arrays of this size are new pages, which cost as much again."""

    def __init__(self, dim: int) -> None:
        self._flat = [np.empty(_BLOCK_ROWS * (dim + 1), np.float32) for _ in range(2)]
        self._product = np.empty(_BLOCK_ROWS * _BLOCK_CENTRES, np.float32)

    def take(self, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return some rows, until the next call after this one."""
        self._flat.reverse()
        out = self._flat[0][: len(indices) * rows.shape[1]].reshape(len(indices), -1)
        return np.take(rows, indices, axis=0, out=out, mode="clip")

    def augment(self, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Return `augment` of what `take` returned last."""
        self._flat.reverse()
        out = self._flat[0][: len(rows) * (rows.shape[1] + 1)].reshape(len(rows), -1)
        return augment(rows, mean, out)

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return left @ right, until the next call."""
        shape = len(left), right.shape[1]
        out = self._product[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(left, right, out=out)


class _Centres:
    """The centres so far, as they are and as (-2 (c - mean), |c - mean|^2)."""

    def __init__(self, mean: Float32[np.ndarray, " dim"]) -> None:
        self.count = 0
        self.plain = np.empty((256, len(mean)), np.float32)
        self.augmented = np.empty((256, len(mean) + 1), np.float32)
        self.largest_norm = 0.0
        self._mean = mean

    def extend(self, centres: Float32[np.ndarray, "new dim"]) -> None:
        count = self.count + len(centres)
        while count > len(self.plain):
            self.plain = np.concatenate([self.plain, np.empty_like(self.plain)])
            self.augmented = np.concatenate([self.augmented, np.empty_like(self.augmented)])
        new = slice(self.count, count)
        self.plain[new] = centres
        centred = centres - self._mean
        norms = squared_norms(centred)
        self.augmented[new, :-1] = -2 * centred
        self.augmented[new, -1] = norms
        self.largest_norm = max(self.largest_norm, float(norms.max(initial=0)))
        self.count = count


def augment(
    rows: np.ndarray, mean: np.ndarray, out: np.ndarray | None = None
) -> Float32[np.ndarray, "rows dim_1"]:
    """Return (x - mean, 1) of each row x: times (-2 c, |c|^2) it gives |x - c|^2 - |x|^2."""
    augmented = np.empty((len(rows), rows.shape[1] + 1), np.float32) if out is None else out
    np.subtract(rows, mean, out=augmented[:, :-1])
    augmented[:, -1] = 1
    return augmented


def squared_norms(rows: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x|^2 of each row."""
    norms: np.ndarray = np.einsum("nd,nd->n", rows, rows)
    return norms


def squared_distances(left: np.ndarray, right: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x - y|^2 of each pair of rows, by direct differences."""
    return squared_lengths(left - right)


def squared_lengths(differences: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x - y|^2 of each row x - y."""
    squared = squared_norms(differences)
    # Below the normal numbers a square has few digits or none: rows that near are equal.
    squared[squared < np.finfo(np.float32).tiny] = 0
    return squared


def product_error(
    norms: np.ndarray, bounds: np.ndarray, largest_norm: float, dim: int
) -> Float32[np.ndarray, " rows"]:
    """Return what rounding can change in |x|^2 + |c|^2 - 2 x.c, for any c that can be nearer.

    A float32 dot product of length d errs by at most d 2^-24 |x||c|, so the three terms together
    by d 2^-24 (|x| + |c|)^2, and their sums by less than 3 more; as much again is for the direct
    difference that it is held against.
    A centre nearer than the bound has |c| <= |x| + sqrt(bound); one that is longer is so far
    beyond that its own rounding cannot bring it back. So one outlier does not blur all others.
    """
    lengths = np.sqrt(norms)
    reach = lengths + np.minimum(lengths + np.sqrt(bounds), np.sqrt(np.float32(largest_norm)))
    error: np.ndarray = np.float32(2 * (dim + 4) * 2.0**-24) * reach * reach
    return error + np.finfo(np.float32).tiny
