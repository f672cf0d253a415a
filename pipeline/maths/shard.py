"""One shard of the rows of a greedy selection: which of its rows are farthest from all centres?

This is the part of `pipeline.maths.coreset` that is done where the rows are; the docstring there
says why the selection is exact. For each row a shard keeps the number of its nearest centre so far,
an upper bound on the distance to that centre, and how many centres it has been compared with.

All distances here are squared. They are computed in two ways. A matrix product compares many rows
with many centres at once, as |x|^2 + |c|^2 - 2 x.c, with an error by rounding that is known
(`product_error`). Wherever that error leaves open which centre is nearer, and for every distance
that is answered, the differences x - c are squared and added up instead.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.maths.distances import (
    augment,
    product_error,
    squared_distances,
    squared_lengths,
    squared_norms,
)

# Rows in a pool: 2048 x 384 float32 are 3 MB, which stay in the cache while centres are picked.
POOL = 2048
# Rows x centres of one product: 1024 x 256 float32 = 1 MiB a thread, which stays in the cache.
_BLOCK_ROWS, _BLOCK_CENTRES = 1024, 256
# Rows of which the outdated ones are looked up and sorted at once: 2^18 x 36 bytes = 9 MB.
_FLUSHED_ROWS = 2**18
# So many rows have a mean that is near enough to that of all.
_AVERAGED = 4096
# A block is reduced to the rows that still need comparing once these are fewer than this share of
# it. Copying them costs as much as some ten centres.
_WORTH_DROPPING = 0.9


@dataclass(frozen=True)
class Farthest:
    """A shard's answer: its rows that are farthest from all centres, and a bound on the others.

    Distances are squared. No row of the shard that is farther than the threshold that was asked for
    and is not in `rows` is farther than `tau`; `tau` is -1 where there is no such row, and else 0
    or more. `reach` is an upper bound on the distances of all rows, for choosing a threshold.
    """

    rows: Float32[np.ndarray, "pool dim"]
    indices: Int64[np.ndarray, " pool"]
    distances: Float32[np.ndarray, " pool"]
    tau: float
    reach: float


class Shard:
    """Some of the rows, each with its nearest centre so far and a bound on the distance to it."""

    def __init__(
        self,
        rows: Float32[np.ndarray, "rows dim"],
        *,
        pool: int = POOL,
        offset: int = 0,
        threads: int = 1,
    ) -> None:
        """Hold some rows, without centres yet.

        Args:
            rows: Not copied, not changed.
            pool: The most rows that an answer contains.
            offset: The index of the first of them among the rows of all shards.
            threads: Change no result.
        """
        self._rows = rows
        self._offset = offset
        self._pool = pool
        self._threads = threads
        # Rows and centres are centred for the product, because |x|^2 + |c|^2 - 2 x.c loses digits
        # where the mean is far from zero. Any point amid the rows will do for the mean.
        some = rows[:: 1 + len(rows) // _AVERAGED]
        self._mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._centres = _Centres(self._mean)
        self._scratch: SimpleQueue[_Scratch] = SimpleQueue()
        for _ in range(threads):
            self._scratch.put(_Scratch(rows.shape[1]))
        # 12 bytes a row. A bound is never less than the distance to the centre number `_nearest`,
        # and exceeds it by twice the product's error at most. `_seen` is how many centres, from the
        # first on, a row has been compared with.
        self._bound = np.full(len(rows), np.inf, np.float32)
        self._nearest = np.zeros(len(rows), np.int32)
        self._seen = np.zeros(len(rows), np.int32)

    def farthest(self, centres: Float32[np.ndarray, "new dim"], threshold: float) -> Farthest:
        """Add centres, and return the rows that are farther from all centres than a threshold.

        Where these are more than `pool`, it returns the farthest of them.

        Args:
            centres: New ones; there may be none.
            threshold: A squared distance. Below 0, all rows are farther.
        """
        self._centres.extend(centres)
        self._flush(threshold)
        # In the first rounds these are nearly all rows: a mask takes less memory than indices do.
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
                # More rows than a pool holds are equally far, within rounding. All of them are
                # measured, and the answer is one row: the farthest, or the first of those that are
                # farthest, which is the next to be picked.
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
        """Return what `farthest` does, in a way that may be asked again after a lost answer.

        `centres` are those from number `first` on; those that the shard has already are skipped.
        None if it lacks earlier ones, because its process died and it was started again.
        """
        known = self._centres.count - first
        return None if known < 0 else self.farthest(centres[known:], threshold)

    def take(self, index: int) -> Float32[np.ndarray, "found dim"]:
        """Return the row of a global index, as an array of one row; of none if it is not here."""
        local = index - self._offset
        is_here = 0 <= local < len(self._rows)
        row: np.ndarray = self._rows[local : local + 1] if is_here else self._rows[:0]
        return row

    def _measure(self, rows: Int64[np.ndarray, " some"]) -> Float32[np.ndarray, " some"]:
        """Replace the bounds of some rows by their distances, and return those.

        The distances to the nearest centres so far are computed by direct differences.
        """
        for begin in range(0, len(rows), _BLOCK_ROWS):
            block = rows[begin : begin + _BLOCK_ROWS]
            nearest = self._centres.plain[self._nearest[block]]
            self._bound[block] = squared_distances(self._rows[block], nearest)
        measured: np.ndarray = self._bound[rows]
        return measured

    def _flush(self, threshold: float) -> None:
        """Compare all rows whose bounds exceed the threshold with the centres new to them."""
        with ThreadPoolExecutor(self._threads) as pool:
            for begin in range(0, len(self._bound), _FLUSHED_ROWS):
                some = slice(begin, begin + _FLUSHED_ROWS)
                seen = self._seen[some]
                stale = (self._bound[some] > threshold) & (seen < self._centres.count)
                numbers = np.flatnonzero(stale)
                # So sorted, a block has rows that lack about the same centres.
                numbers = numbers[np.argsort(seen[numbers], kind="stable")] + begin
                size = _BLOCK_ROWS
                blocks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
                for _ in pool.map(self._flush_with_buffers, blocks, [threshold] * len(blocks)):
                    pass

    def _flush_with_buffers(self, block: Int64[np.ndarray, " block"], threshold: float) -> None:
        """Call `_flush_block` with buffers that no other thread is using."""
        scratch = self._scratch.get()
        try:
            self._flush_block(block, threshold, scratch)
        finally:
            self._scratch.put(scratch)

    def _flush_block(
        self, block: Int64[np.ndarray, " block"], threshold: float, scratch: "_Scratch"
    ) -> None:
        """Compare some rows with the centres new to them, until no bound exceeds the threshold."""
        rows = scratch.take(self._rows, block)
        if self._centres.count == 1:
            # With a single centre there is nothing to choose: the distance itself is the bound.
            rows -= self._centres.plain[0]
            self._bound[block] = squared_lengths(rows)
            self._seen[block] = 1
            return
        augmented = scratch.augment(rows, self._mean)
        norms = squared_norms(augmented[:, :-1])
        for begin in range(int(self._seen[block].min()), self._centres.count, _BLOCK_CENTRES):
            end = min(begin + _BLOCK_CENTRES, self._centres.count)
            product = scratch.product(augmented, self._centres.augmented[begin:end].T)
            self._take_nearer(block, product, norms, begin)
            self._seen[block] = end
            # Most rows fall below the threshold on the way, and need no further centres.
            above = np.flatnonzero(self._bound[block] > threshold)
            if len(above) == 0:
                return
            if len(above) < _WORTH_DROPPING * len(block):
                block, norms = block[above], norms[above]
                augmented = scratch.take(augmented, above)

    def _take_nearer(
        self, block: np.ndarray, product: np.ndarray, norms: np.ndarray, begin: int
    ) -> None:
        """Give each row of a block the nearest of its centre so far and some new ones.

        1. The product proposes a squared distance for each row and new centre, wrong by at most the
           row's `error`. A new centre can be nearer only where the proposal is not above the row's
           bound by more than that. Most rows have no such centre, and are done.
        2. For each of the other rows, `limit` is a distance within which the nearest centre lies
           for certain: the least proposal plus the error, or the bound if that is less. Only new
           centres whose proposals are at most `limit` plus the error remain possible. So does the
           centre so far, unless its bound is above the limit by more than twice the error.
        3. Where one centre remains, it is the nearest. If it is a new one, the bound becomes the
           proposal plus the error.
        4. Where several remain, the row is measured against each by direct differences. The nearest
           is taken, and of equally near ones that of the lowest number.

        Args:
            block: Numbers of the rows within the shard.
            product: |c|^2 - 2 x.c for each of them (rows) and each new centre (columns), about the
                mean. With |x|^2 added, it is the squared distance.
            norms: |x|^2 of the rows, about the mean.
            begin: The number of the first new centre.
        """
        before = self._bound[block]
        error = product_error(norms, before, self._centres.largest_norm, len(self._mean))
        near = np.flatnonzero(product <= (before + error - norms)[:, None])
        if len(near) == 0:
            return
        # From here on, only about the rows that have a new centre that can be nearer. There are
        # arrays with a value for each such row, and others with one for each pair of a row and a
        # centre, in which `row` counts those rows.
        row, centre = np.divmod(near, product.shape[1])
        proposed = product.ravel()[near] + norms[row]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        reached = row[first]
        row = np.repeat(np.arange(len(first)), np.diff(first, append=len(row)))
        block, before, error = block[reached], before[reached], error[reached]
        limit = np.minimum(np.minimum.reduceat(proposed, first) + error, before)
        possible = proposed <= (limit + error)[row]
        row, centre, proposed = row[possible], centre[possible], proposed[possible]
        is_old_possible = np.isfinite(before) & (before - 2 * error <= limit)
        contested = np.bincount(row, minlength=len(block)) + is_old_possible > 1
        sure = ~contested[row]
        self._bound[block[row[sure]]] = (proposed + error[row])[sure]
        self._nearest[block[row[sure]]] = centre[sure] + begin
        with_old = np.flatnonzero(contested & is_old_possible)
        row = np.concatenate([with_old, row[~sure]])
        centre = np.concatenate([self._nearest[block[with_old]], centre[~sure] + begin])
        direct = squared_distances(self._rows[block[row]], self._centres.plain[centre])
        # numpy writes in this order, and the last write to a row stays: it must be the nearest
        # centre, and of equally near ones the first.
        order = np.lexsort((-centre, -direct, row))
        self._bound[block[row[order]]] = direct[order]
        self._nearest[block[row[order]]] = centre[order]


class _Scratch:
    """Buffers of one thread, used again and again.

    Arrays of this size would otherwise be new memory each time, and its page faults would cost as
    much as the work itself.
    """

    def __init__(self, dim: int) -> None:
        self._flat = [np.empty(_BLOCK_ROWS * (dim + 1), np.float32) for _ in range(2)]
        self._product = np.empty(_BLOCK_ROWS * _BLOCK_CENTRES, np.float32)

    def take(self, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return some of the rows, valid until the call after the next one."""
        self._flat.reverse()
        out = self._flat[0][: len(indices) * rows.shape[1]].reshape(len(indices), -1)
        return np.take(rows, indices, axis=0, out=out, mode="clip")

    def augment(self, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Return what the function `augment` does, given the rows that `take` returned last."""
        self._flat.reverse()
        out = self._flat[0][: len(rows) * (rows.shape[1] + 1)].reshape(len(rows), -1)
        return augment(rows, mean, out)

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return left @ right, valid until the next call."""
        shape = len(left), right.shape[1]
        out = self._product[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(left, right, out=out)


class _Centres:
    """The centres so far, as they are (`plain`) and as (-2 (c - mean), |c - mean|^2).

    The arrays have room for more than `count` centres.
    """

    def __init__(self, mean: Float32[np.ndarray, " dim"]) -> None:
        self.count = 0
        self.plain = np.empty((256, len(mean)), np.float32)
        self.augmented = np.empty((256, len(mean) + 1), np.float32)
        self.largest_norm = 0.0
        self._mean = mean

    def extend(self, centres: Float32[np.ndarray, "new dim"]) -> None:
        """Add centres, which get the next numbers."""
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
