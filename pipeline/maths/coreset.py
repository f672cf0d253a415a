"""Greedy k-centre selection of a coreset: the exact sequence, without a pass over all rows a step.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, algorithm 1;
Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: its covering radius is
at most twice the smallest possible one. Differences from the paper: distances are taken in the
full space, not in a random projection, and the first centre is given.

Plain greedy measures every row against each new centre, one matrix-vector product a step, and is
bound by memory. Here each row keeps its distance to the first `seen` centres, which can only fall
as centres are added. Why the sequence is that of plain greedy:

1. *Flush* (`pipeline.maths.shard`): rows whose bound exceeds a threshold are measured against the
   centres that they have not seen, many at once, in a matrix product. All others are nearer.
2. *Pool*: the farthest rows, whose bounds are now their distances. Every row outside the pool is
   at most `tau` away, now and for ever.
3. *Local greedy* (`_pick`): while the farthest row of the pool is farther than `tau`, no row
   outside can be the next centre, so the pool alone decides. When it is not, flush again.

A matrix product only proposes: where its rounding leaves several centres possible as the nearest,
they are measured by direct differences, and so is every candidate before it is compared. So the
order does not depend on blocks, threads, the BLAS kernel or how the rows are sharded, and ties go
to the lowest index.

*Continuation* (`extend`): the same from any centres that are given and need not be rows, such as a
memory bank whose rows were selected from images that are gone. If those gone are within r of the
given centres and the rows here within r' of all centres in the end, all of them are within
max(r, r'). While r' exceeds r, each pick is what greedy over all rows, old and new, would pick.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64
from threadpoolctl import threadpool_limits

from patchlake.pipeline.maths.shard import (
    POOL,
    Farthest,
    Shard,
    augment,
    product_error,
    squared_distances,
    squared_norms,
)

Progress = Callable[[int, int], None]

# Centres between two looks at what has left a pool.
_TRIM_EVERY = 32
# Least and largest part of the front's distance that is the next threshold. Rows below it are
# spared: a high one costs rounds, of a few ms each, a low one products with rows that would never
# have come near the front. Of 0.9 to 0.99, these measured best.
_SHARES = 0.95, 0.98


@dataclass(frozen=True)
class Coreset:
    """Selected rows in order of selection; every prefix is the coreset of that size.

    `radii[i]` is the covering radius after `i + 1` centres: the largest distance of any row to its
    nearest centre.
    """

    indices: Int64[np.ndarray, " size"]
    radii: Float32[np.ndarray, " size"]


@dataclass(frozen=True)
class Extension:
    """Rows selected after centres that were given, in order of selection.

    `radii[i]` is the covering radius of the rows after `i` of them: one more than there are rows.
    """

    indices: Int64[np.ndarray, " picked"]
    radii: Float32[np.ndarray, " picked_1"]


@runtime_checkable
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
    O(rows * size * dim) time. Memory beside `rows`: 12 bytes a row, 6 more in the first rounds, the
    centres twice, a few copies of a pool (50 kB a dimension), 12 MiB, and for each further thread
    9 kB a dimension and 2 MiB.

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
        shards = Shards([Shard(rows, pool=POOL, threads=threads)])
        return select(shards, rows[start], start, size, progress)


def extend(
    rows: Float32[np.ndarray, "rows dim"],
    centres: Float32[np.ndarray, "given dim"],
    size: int,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Extension:
    """Return `size` rows more, each the farthest from the centres given and those before it.

    As `greedy`, which it continues: fewer where all rows coincide with centres. `size` may be 0,
    for the radius alone.

    Raises:
        ValueError: if there are no rows or no centres, or `size` exceeds the rows.
    """
    if not 0 <= size <= len(rows) or 0 in (len(rows), len(centres)):
        raise ValueError(f"size {size} does not fit {len(rows)} rows and {len(centres)} centres")
    with threadpool_limits(1, "blas"):
        shards = Shards([Shard(rows, pool=POOL, threads=threads)])
        return select_further(shards, centres, size, progress)


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
    picked = _Picked([start], [], radii=size, size=size)
    _pick_on(shards, first[None], picked, progress)
    return Coreset(*picked.arrays())


def select_further(
    shards: Rows,
    centres: Float32[np.ndarray, "given dim"],
    size: int,
    progress: Progress | None = None,
) -> Extension:
    """Return the rows that greedy picks after the centres given: the same for any sharding.

    Args:
        shards: All rows, none of which need be a centre.
        centres: At least one.
        size: Rows to pick, 0 to all of them.
        progress: Called with (selected, size) after each round.
    """
    picked = _Picked([], [], radii=size + 1, size=size)
    _pick_on(shards, centres, picked, progress)
    return Extension(*picked.arrays())


def _pick_on(
    shards: Rows, centres: np.ndarray, picked: "_Picked", progress: Progress | None
) -> None:
    """Pick until there are as many radii as are wanted, or nothing is left to be covered."""
    threshold, share = -1.0, _SHARES[0]
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
        centres = _pick(answers, tau, picked)
        if picked.is_done:
            return
        candidates = sum(len(answer.indices) for answer in answers)
        share += 0.02 if candidates >= POOL else -0.02
        share = min(max(share, _SHARES[0]), _SHARES[1])
        threshold = share * tau
        if progress is not None:
            progress(len(picked.indices), picked.size)


@dataclass
class _Picked:
    indices: list[int]
    # The radius after a centre is known when the next one is.
    squared_radii: list[float]
    # How many radii are wanted, and indices.
    radii: int
    size: int

    @property
    def is_done(self) -> bool:
        return len(self.squared_radii) == self.radii or self.squared_radii[-1:] == [0.0]

    def arrays(self) -> tuple[Int64[np.ndarray, " indices"], Float32[np.ndarray, " radii"]]:
        radii = np.sqrt(np.asarray(self.squared_radii, np.float32))
        return np.asarray(self.indices, np.int64), radii


def _pick(
    answers: Sequence[Farthest], tau: float, picked: _Picked
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
        if picked.is_done:
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
    # Of the product, for any of these as the centre.
    error: Float32[np.ndarray, " pool"]

    @classmethod
    def of(cls, rows: np.ndarray, indices: np.ndarray, distances: np.ndarray) -> "_Pool":
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1], np.float32)
        augmented = augment(rows, mean)
        norms = squared_norms(augmented[:, :-1])
        error = product_error(norms, distances, float(norms.max(initial=0)), rows.shape[1])
        return cls(rows, indices, distances, augmented, norms, error)

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
        near = np.flatnonzero(product <= self.distances + self.error)
        direct = squared_distances(self.rows[near], self.rows[centre])
        self.distances[near] = np.minimum(self.distances[near], direct)

    def trimmed(self, tau: float) -> "_Pool":
        """Return the pool without what can no longer be picked, once that is a quarter of it."""
        keep = self.distances > tau
        if np.count_nonzero(keep) > 0.75 * len(keep):
            return self
        return _Pool(*(getattr(self, member.name)[keep] for member in fields(self)))


@dataclass(frozen=True)
class Shards:
    """Shards in this process."""

    shards: Sequence[Shard] = field(default_factory=list)

    def farthest(
        self, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Sequence[Farthest]:
        """Return each shard's answer."""
        return [shard.farthest(centres, threshold) for shard in self.shards]
