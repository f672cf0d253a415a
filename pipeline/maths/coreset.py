"""Greedy k-centre selection of a coreset: the exact sequence, without a pass over all rows a step.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, algorithm 1;
Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: its covering radius is
at most twice the smallest possible one. Differences from the paper: distances are taken in the
full space, not in a random projection, and the first centre is given.

The next centre is always the row that is farthest from all centres so far. Plain greedy measures
every row against each new centre, in one matrix-vector product a step, and is bound by memory. Here
each row keeps an upper bound on its distance to the nearest centre: the distance to the centres
with which it has been compared so far, which further centres can only make smaller. The selection
repeats three steps:

1. *Flush* (`pipeline.maths.shard`): rows whose bounds exceed a threshold are compared with the
   centres that are new to them, many at once, in a matrix product. All other rows are nearer.
2. *Pool*: the farthest rows are collected, whose bounds are now their distances. Every row outside
   of the pool is at most `tau` away, now and for ever.
3. *Pick* (`_pick`): while the farthest row of the pool is farther than `tau`, no row outside can be
   the next centre. So plain greedy within the pool picks what it would pick among all rows. When
   the farthest row is not farther than `tau`, the next round begins with a flush.

A matrix product only proposes: where its rounding leaves several centres possible as the nearest,
they are measured by direct differences, and so is every candidate before it is compared. So the
order does not depend on blocks, threads, the BLAS kernel or how the rows are sharded, and ties go
to the lowest index.

*Continuation* (`extend`): the same from any centres that are given and need not be rows, such as a
memory bank whose rows were selected from images that are gone. If the rows that are gone are within
r of the given centres, and the rows here are within r' of all centres in the end, then all of them
are within max(r, r'). While r' exceeds r, each pick is what greedy over all rows, old and new,
would pick.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.distances import (
    augment,
    product_error,
    squared_distances,
    squared_norms,
)
from patchlake.pipeline.maths.shard import POOL, Farthest, Shard

# Called with the numbers of rows selected so far and in all.
Progress = Callable[[int, int], None]

# After so many picks, rows that can no longer be picked are removed from the pool.
_TRIM_EVERY = 32
# The threshold of the next round is `tau` times a share between these two. Rows below the threshold
# are not compared. A high share costs more rounds, of a few ms each; a low one costs products with
# rows that would never become candidates. Of shares from 0.9 to 0.99, these measured best.
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

    `radii[i]` is the covering radius after the given centres and `i` of these rows; there is one
    radius more than there are rows.
    """

    indices: Int64[np.ndarray, " picked"]
    radii: Float32[np.ndarray, " picked_1"]


@runtime_checkable
class ShardedRows(Protocol):
    """All rows, in shards, wherever these are."""

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
    with on_one_thread():
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
    """Return `size` rows, each the farthest from the centres given and the rows before it.

    It continues `greedy`, and takes the same time and memory. It ends early, with fewer rows, when
    every row coincides with a centre. `size` may be 0, for the radius alone.

    Raises:
        ValueError: if there are no rows or no centres, or `size` exceeds the rows.
    """
    if not 0 <= size <= len(rows) or 0 in (len(rows), len(centres)):
        raise ValueError(f"size {size} does not fit {len(rows)} rows and {len(centres)} centres")
    with on_one_thread():
        shards = Shards([Shard(rows, pool=POOL, threads=threads)])
        return select_further(shards, centres, size, progress)


def select(
    shards: ShardedRows,
    first: Float32[np.ndarray, " dim"],
    start: int,
    size: int,
    progress: Progress | None = None,
) -> Coreset:
    """Return the greedy coreset of sharded rows: the same for any sharding.

    Args:
        shards: All rows; each round of the selection asks each shard once.
        first: The row of index `start`.
        start: Index of the first centre.
        size: At most the number of rows.
        progress: Called with (selected, size) after each round.
    """
    selection = _Selection([start], [], radii=size, size=size)
    _complete(selection, shards, first[None], progress)
    return Coreset(*selection.arrays())


def select_further(
    shards: ShardedRows,
    centres: Float32[np.ndarray, "given dim"],
    size: int,
    progress: Progress | None = None,
) -> Extension:
    """Return the rows that greedy picks after given centres: the same for any sharding.

    Args:
        shards: All rows, none of which need be a centre.
        centres: At least one.
        size: Rows to pick, 0 to all of them.
        progress: Called with (selected, size) after each round.
    """
    selection = _Selection([], [], radii=size + 1, size=size)
    _complete(selection, shards, centres, progress)
    return Extension(*selection.arrays())


def _complete(
    selection: "_Selection", shards: ShardedRows, centres: np.ndarray, progress: Progress | None
) -> None:
    """Pick rows until the selection is done.

    Args:
        selection: What has been selected so far; it is added to.
        shards: All rows.
        centres: Those that the shards do not know yet.
        progress: Called after each round.
    """
    threshold, share = -1.0, _SHARES[0]
    while True:
        answers = shards.farthest(centres, threshold)
        tau = max(*(answer.tau for answer in answers), threshold, 0.0)
        largest = max(float(answer.distances.max(initial=0)) for answer in answers)
        if largest <= threshold:
            # No row is farther than the threshold any more, so that it has to be lowered. A reach
            # of 0 means that all rows coincide with centres.
            reach = max(answer.reach for answer in answers)
            threshold = share * min(reach, threshold)
            centres = centres[:0]
            if threshold > 0:
                continue
        centres = _pick(answers, tau, selection)
        if selection.is_done:
            return
        candidates = sum(len(answer.indices) for answer in answers)
        share += 0.02 if candidates >= POOL else -0.02
        share = min(max(share, _SHARES[0]), _SHARES[1])
        threshold = share * tau
        if progress is not None:
            progress(len(selection.indices), selection.size)


@dataclass
class _Selection:
    """The rows picked so far, and the squared covering radii known so far.

    It is done when it has `radii` radii, or when the last radius is 0. The radius after a centre is
    the distance of the row that is picked next, so it is known only then.
    """

    indices: list[int]
    squared_radii: list[float]
    # How many radii, and how many indices, there are to be.
    radii: int
    size: int

    @property
    def is_done(self) -> bool:
        return len(self.squared_radii) == self.radii or self.squared_radii[-1:] == [0.0]

    def arrays(self) -> tuple[Int64[np.ndarray, " indices"], Float32[np.ndarray, " radii"]]:
        radii = np.sqrt(np.asarray(self.squared_radii, np.float32))
        return np.asarray(self.indices, np.int64), radii


def _pick(
    answers: Sequence[Farthest], tau: float, selection: _Selection
) -> Float32[np.ndarray, "new dim"]:
    """Pick among the candidates, greedily, while one is farther than `tau`; return the new centres.

    At least one is picked: the farthest candidate is the farthest row of all, even where it is not
    farther than `tau`.
    """
    distances = np.concatenate([answer.distances for answer in answers])
    indices = np.concatenate([answer.indices for answer in answers])
    # In the order of the indices, so that the first of equally far ones is the lowest. Candidates
    # that are too near to be picked are left out.
    order = np.argsort(indices)
    order = order[distances[order] >= min(tau, distances.max(initial=0.0))]
    rows = np.concatenate([answer.rows for answer in answers])[order]
    pool = _Pool.of(rows, indices[order], distances[order])
    chosen: list[np.ndarray] = []
    while True:
        farthest, largest = pool.farthest()
        # If the largest distance and tau are both 0, all rows coincide with centres, and 0 is the
        # last radius: it has to be noted.
        if chosen and largest <= tau and tau > 0:
            break
        selection.squared_radii.append(largest)
        if selection.is_done:
            break
        selection.indices.append(int(pool.indices[farthest]))
        chosen.append(pool.rows[farthest])
        pool.lower(farthest)
        if len(chosen) % _TRIM_EVERY == 0:
            pool = pool.trimmed(tau)
    return np.stack(chosen) if chosen else rows[:0]


@dataclass(frozen=True)
class _Pool:
    """Candidates, with their distances to the nearest centres.

    `augmented` has (x, 1) for each candidate x about their mean: the product with (-2 c, |c|^2) is
    the squared distance less |x|^2, which is in `norms`. `error` bounds the product's rounding for
    any candidate as the centre c.
    """

    rows: Float32[np.ndarray, "pool dim"]
    indices: Int64[np.ndarray, " pool"]
    distances: Float32[np.ndarray, " pool"]
    augmented: Float32[np.ndarray, "pool dim_1"]
    norms: Float32[np.ndarray, " pool"]
    error: Float32[np.ndarray, " pool"]

    @classmethod
    def of(cls, rows: np.ndarray, indices: np.ndarray, distances: np.ndarray) -> "_Pool":
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1], np.float32)
        augmented = augment(rows, mean)
        norms = squared_norms(augmented[:, :-1])
        error = product_error(norms, distances, float(norms.max(initial=0)), rows.shape[1])
        return cls(rows, indices, distances, augmented, norms, error)

    def farthest(self) -> tuple[int, float]:
        """Return the position of the farthest candidate and its squared distance.

        Of equally far ones it is the first; without candidates the answer is -1 and 0.
        """
        if len(self.distances) == 0:
            return -1, 0.0
        position = int(self.distances.argmax())
        return position, float(self.distances[position])

    def lower(self, centre: int) -> None:
        """Lower the distances of the candidates to which the new centre is nearer.

        Args:
            centre: The position of the new centre among the candidates.
        """
        negative = self.augmented[centre] * -2
        negative[-1] = self.norms[centre]
        product = self.augmented @ negative
        product += self.norms
        near = np.flatnonzero(product <= self.distances + self.error)
        direct = squared_distances(self.rows[near], self.rows[centre])
        self.distances[near] = np.minimum(self.distances[near], direct)

    def trimmed(self, tau: float) -> "_Pool":
        """Return the pool without the candidates within `tau`, which can no longer be picked.

        Where these are less than a quarter, it is not worth while: the pool itself is returned.
        """
        keep = self.distances > tau
        if np.count_nonzero(keep) > 0.75 * len(keep):
            return self
        return _Pool(*(getattr(self, member.name)[keep] for member in fields(self)))


@dataclass(frozen=True)
class Shards:
    """Shards in this process, asked one after the other."""

    shards: Sequence[Shard] = field(default_factory=list)

    def farthest(
        self, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Sequence[Farthest]:
        """Return each shard's answer."""
        return [shard.farthest(centres, threshold) for shard in self.shards]
