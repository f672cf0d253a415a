"""Greedy k-centre selection of a coreset: the exact sequence, without a pass over all rows a step.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, algorithm 1;
Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: its covering radius is
at most twice the smallest possible one. Differences from the paper: distances are taken in the
full space, not in a random projection, and the first centre is given.

Plain greedy measures every row against each new centre, one matrix-vector product a step, and is
bound by memory. Here each row keeps its distance to the first `seen` centres, which can only fall
as centres are added. Why the sequence is that of plain greedy:

1. *Flush* (`Shard.farthest`): rows whose bound exceeds a threshold are measured against the
   centres that they have not seen, many at once, in a matrix product. All others are nearer.
2. *Pool*: the farthest rows, whose bounds are now their distances. Every row outside the pool is
   at most `tau` away, now and for ever.
3. *Local greedy* (`_pick`): while the farthest row of the pool is farther than `tau`, no row
   outside can be the next centre, so the pool alone decides. When it is not, flush again.

A matrix product only proposes: where its rounding leaves several centres possible as the nearest,
they are measured by direct differences, and so is every candidate before it is compared. So the
order does not depend on blocks, threads, the BLAS kernel or how the rows are sharded, and ties go
to the lowest index.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64
from threadpoolctl import threadpool_limits

Progress = Callable[[int, int], None]

# Rows in a pool: 2048 x 384 float32 are 3 MB, which stays in the cache for all of its picks.
_POOL = 2048
# Centres between two looks at what has left a pool.
_TRIM_EVERY = 32
# Rows x centres of one product of a flush: 1024 x 4096 float32 = 16 MiB a thread.
_BLOCK_ROWS, _BLOCK_CENTRES = 1024, 4096


@dataclass(frozen=True)
class Coreset:
    """Selected rows in order of selection; every prefix is the coreset of that size.

    `radii[i]` is the covering radius after `i + 1` centres: the largest distance of any row to its
    nearest centre.
    """

    indices: Int64[np.ndarray, " size"]
    radii: Float32[np.ndarray, " size"]


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


class Rows(Protocol):
    """Shards of the rows, wherever they are."""

    def farthest(
        self, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Sequence[Farthest]:
        """Add centres, and return each shard's rows that are farther than the threshold."""


def greedy(
    rows: Float32[np.ndarray, "rows dim"],
    size: int,
    *,
    start: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Coreset:
    """Return `size` rows, each the farthest from those before it; ties go to the lowest index.

    It ends early, with fewer rows, when every row coincides with a selected one. At most
    O(rows * size * dim) time; memory beside `rows` is 12 bytes a row, the centres twice, and
    20 MiB of buffers a thread.

    Args:
        rows: Not copied, not changed.
        size: From 1 to the number of rows.
        start: The first centre.
        threads: Change no result.
        progress: Called with (selected, size) now and then.

    Raises:
        ValueError: if `size` or `start` does not fit the number of rows.
    """
    if not 1 <= size <= len(rows) or not 0 <= start < len(rows):
        raise ValueError(f"size {size} and start {start} do not fit {len(rows)} rows")
    # Blocks are the parallel tasks; a BLAS with threads of its own would only fight them.
    with threadpool_limits(1, "blas"):
        shards = Shards([Shard(rows, pool=_POOL, threads=threads)])
        return select(shards, rows[start], start, size, progress)


def select(
    shards: Rows,
    first: Float32[np.ndarray, " dim"],
    start: int,
    size: int,
    progress: Progress | None = None,
) -> Coreset:
    """Return the greedy coreset of sharded rows: the same for any sharding.

    Args:
        shards: All rows; a round of this function asks each shard once.
        first: The row of index `start`.
        start: Index of the first centre.
        size: At most the number of rows.
        progress: Called with (selected, size) after each round.
    """
    picked = _Picked([start], [])
    centres = first[None]
    threshold, share = -1.0, 0.9
    while True:
        answers = shards.farthest(centres, threshold)
        tau = max(*(answer.tau for answer in answers), threshold, 0.0)
        largest = max(float(answer.distances.max(initial=0)) for answer in answers)
        if largest <= threshold:
            # Nothing is that far any more; a reach of 0 means that nothing is anywhere.
            reach = max(answer.reach for answer in answers)
            threshold = share * min(reach, threshold)
            centres = centres[:0]
            if threshold > 0:
                continue
        centres = _pick(answers, tau, size, picked)
        if len(picked.squared_radii) == size or picked.squared_radii[-1:] == [0.0]:
            break
        # Aim at answers between one and three quarters of what a pool holds.
        candidates = sum(len(answer.indices) for answer in answers)
        share = min(0.97, share + 0.05) if candidates >= _POOL else max(0.3, share - 0.1)
        threshold = share * tau
        if progress is not None:
            progress(len(picked.indices), size)
    radii = np.sqrt(np.asarray(picked.squared_radii, np.float32))
    return Coreset(np.asarray(picked.indices, np.int64), radii)


@dataclass
class _Picked:
    indices: list[int]
    # One behind the indices: the radius after a centre is known when the next one is.
    squared_radii: list[float]


def _pick(
    answers: Sequence[Farthest], tau: float, size: int, picked: _Picked
) -> Float32[np.ndarray, "new dim"]:
    """Greedy among the candidates while one is farther than `tau`; return the new centres.

    The first of them is the farthest row of all, also when it is not farther than `tau`.
    """
    distances = np.concatenate([answer.distances for answer in answers])
    indices = np.concatenate([answer.indices for answer in answers])
    # By index, so that the first of equals is the lowest; and only what can be picked.
    order = np.argsort(indices)
    order = order[distances[order] >= min(tau, distances.max(initial=0.0))]
    rows = np.concatenate([answer.rows for answer in answers])[order]
    pool = _Pool.of(rows, indices[order], distances[order])
    chosen: list[np.ndarray] = []
    while True:
        farthest, largest = pool.farthest()
        # At 0 with tau at 0 every row is a centre's equal, and that is the last radius.
        if chosen and largest <= tau and tau > 0:
            break
        picked.squared_radii.append(largest)
        if len(picked.squared_radii) == size or largest == 0:
            break
        picked.indices.append(int(pool.indices[farthest]))
        chosen.append(pool.rows[farthest])
        pool.lower(farthest)
        if len(chosen) % _TRIM_EVERY == 0:
            pool = pool.trimmed(tau)
    return np.stack(chosen) if chosen else rows[:0]


@dataclass(frozen=True)
class _Pool:
    """Candidates about their mean, as (x, 1): one product with (-2c, |c|^2) ranks distances."""

    rows: Float32[np.ndarray, "pool dim"]
    indices: Int64[np.ndarray, " pool"]
    distances: Float32[np.ndarray, " pool"]
    augmented: Float32[np.ndarray, "pool dim_1"]
    norms: Float32[np.ndarray, " pool"]

    @classmethod
    def of(cls, rows: np.ndarray, indices: np.ndarray, distances: np.ndarray) -> "_Pool":
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1], np.float32)
        augmented = _augment(rows, mean)
        norms = _norms(augmented[:, :-1])
        return cls(rows, indices, distances, augmented, norms)

    def farthest(self) -> tuple[int, float]:
        """Return the position of the farthest candidate, the first of equals, and its distance."""
        if len(self.distances) == 0:
            return -1, 0.0
        position = int(self.distances.argmax())
        return position, float(self.distances[position])

    def lower(self, centre: int) -> None:
        """Lower the distances to those to the new centre, where it is nearer."""
        negative = self.augmented[centre] * -2
        negative[-1] = self.norms[centre]
        product = self.augmented @ negative
        product += self.norms
        error = _error(self.norms, self.distances, float(self.norms[centre]), self.rows.shape[1])
        near = np.flatnonzero(product <= self.distances + error)
        direct = _squared(self.rows[near], self.rows[centre])
        self.distances[near] = np.minimum(self.distances[near], direct)

    def trimmed(self, tau: float) -> "_Pool":
        """Return the pool without what can no longer be picked, once that is a quarter of it."""
        keep = self.distances > tau
        if np.count_nonzero(keep) > 0.75 * len(keep):
            return self
        fields = (self.rows, self.indices, self.distances, self.augmented, self.norms)
        return _Pool(*(values[keep] for values in fields))


class Shard:
    """Some of the rows, each with its nearest centre so far and how far that is at most."""

    def __init__(
        self,
        rows: Float32[np.ndarray, "rows dim"],
        *,
        pool: int = _POOL,
        offset: int = 0,
        threads: int = 1,
    ) -> None:
        """Hold `rows`, whose global indices begin at `offset`; answer at most `pool` of them."""
        self._rows = rows
        self._offset = offset
        self._pool = pool
        self._threads = threads
        # Centred, because |x|^2 + |c|^2 - 2 x.c loses digits where the mean is far from zero.
        self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._centres = _Centres(self._mean)
        # 12 bytes a row. `bound` exceeds the distance to `nearest` by rounding at most, never less.
        self._bound = np.full(len(rows), np.inf, np.float32)
        self._nearest = np.zeros(len(rows), np.int32)
        self._seen = np.zeros(len(rows), np.int32)

    def farthest(self, centres: Float32[np.ndarray, "new dim"], threshold: float) -> Farthest:
        """Add centres; return the rows that are farther than the threshold, at most `pool`."""
        self._centres.extend(centres)
        self._flush(threshold)
        above = np.flatnonzero(self._bound > threshold)
        tau = -1.0
        if len(above) > self._pool:
            bounds = self._bound[above]
            cut = len(above) - self._pool - 1
            tau = float(np.partition(bounds, cut)[cut])
            chosen = above[bounds > tau]
            largest = float(self._measure(chosen).max(initial=0))
            if largest <= tau:
                # More rows than a pool are equally far, within rounding: measure all of them.
                # The lowest of the farthest is the next to be picked, and one is enough.
                near = above[self._bound[above] >= largest]
                measured = self._measure(near)
                chosen, tau = near[measured.argmax()][None], float(measured.max())
            above = chosen
        return Farthest(
            rows=self._rows[above],
            indices=above + self._offset,
            distances=self._measure(above),
            tau=tau,
            reach=float(self._bound.max(initial=0)),
        )

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
            self._bound[block] = _squared(self._rows[block], nearest)
        measured: np.ndarray = self._bound[rows]
        return measured

    def _flush(self, threshold: float) -> None:
        stale = np.flatnonzero((self._bound > threshold) & (self._seen < self._centres.count))
        # Rows that have seen the same centres share a product.
        stale = stale[np.argsort(self._seen[stale], kind="stable")]
        blocks = [stale[i : i + _BLOCK_ROWS] for i in range(0, len(stale), _BLOCK_ROWS)]
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(self._flush_block, blocks):
                pass
        self._seen[stale] = self._centres.count

    def _flush_block(self, block: Int64[np.ndarray, " block"]) -> None:
        augmented = _augment(self._rows[block], self._mean)
        norms = _norms(augmented[:, :-1])
        first = int(self._seen[block].min())
        for begin in range(first, self._centres.count, _BLOCK_CENTRES):
            end = min(begin + _BLOCK_CENTRES, self._centres.count)
            product = augmented @ self._centres.augmented[begin:end].T
            product += norms[:, None]
            error = _error(norms, self._bound[block], self._centres.largest_norm, len(self._mean))
            self._lower(block, product, error, begin)

    def _lower(self, block: np.ndarray, product: np.ndarray, error: np.ndarray, begin: int) -> None:
        """Lower a block's bounds by the distances, from a product, to centres `begin` onwards."""
        before = self._bound[block]
        limit = np.minimum(product.min(axis=1) + error, before)
        near = np.flatnonzero(product <= (limit + error)[:, None])
        row, centre = np.divmod(near, product.shape[1])
        # One candidate, new or old, is the nearest for certain. Several are measured.
        old = np.isfinite(before) & (before - 2 * error <= limit)
        contested = np.bincount(row, minlength=len(block)) + old > 1
        sure = ~contested[row]
        self._bound[block[row[sure]]] = (product.ravel()[near] + error[row])[sure]
        self._nearest[block[row[sure]]] = centre[sure] + begin
        kept = np.flatnonzero(contested & old)
        row = np.concatenate([kept, row[~sure]])
        centre = np.concatenate([self._nearest[block[kept]], centre[~sure] + begin])
        direct = _squared(self._rows[block[row]], self._centres.plain[centre])
        # The last write to a row counts: sort so that it is the nearest, and the first of equals.
        order = np.lexsort((-centre, -direct, row))
        self._bound[block[row[order]]] = direct[order]
        self._nearest[block[row[order]]] = centre[order]


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
        norms = _norms(centred)
        self.augmented[new, :-1] = -2 * centred
        self.augmented[new, -1] = norms
        self.largest_norm = max(self.largest_norm, float(norms.max(initial=0)))
        self.count = count


@dataclass(frozen=True)
class Shards:
    """Shards in this process."""

    shards: Sequence[Shard] = field(default_factory=list)

    def farthest(
        self, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Sequence[Farthest]:
        """Return each shard's answer."""
        return [shard.farthest(centres, threshold) for shard in self.shards]


def _augment(rows: np.ndarray, mean: np.ndarray) -> Float32[np.ndarray, "rows dim_1"]:
    augmented = np.empty((len(rows), rows.shape[1] + 1), np.float32)
    np.subtract(rows, mean, out=augmented[:, :-1])
    augmented[:, -1] = 1
    return augmented


def _norms(rows: np.ndarray) -> Float32[np.ndarray, " rows"]:
    norms: np.ndarray = np.einsum("nd,nd->n", rows, rows)
    return norms


def _squared(left: np.ndarray, right: np.ndarray) -> Float32[np.ndarray, " rows"]:
    squared = _norms(left - right)
    # Below the normal numbers a square has few digits or none: rows that near are equal.
    squared[squared < np.finfo(np.float32).tiny] = 0
    return squared


def _error(
    norms: np.ndarray, bounds: np.ndarray, largest_norm: float, dim: int
) -> Float32[np.ndarray, " rows"]:
    """Return what rounding can change in |x|^2 + |c|^2 - 2 x.c, for any c that can be nearer.

    A float32 dot product of length d errs by at most d 2^-24 |x||c|, so the three terms together
    by d 2^-24 (|x| + |c|)^2; as much again is for the direct difference that it is held against.
    A centre nearer than the bound has |c| <= |x| + sqrt(bound); one that is longer is so far
    beyond that its own rounding cannot bring it back. So one outlier does not blur all others.
    """
    lengths = np.sqrt(norms)
    reach = lengths + np.minimum(lengths + np.sqrt(bounds), np.sqrt(np.float32(largest_norm)))
    error: np.ndarray = np.float32(2 * (dim + 1) * 2.0**-24) * reach * reach
    return error + np.finfo(np.float32).tiny
