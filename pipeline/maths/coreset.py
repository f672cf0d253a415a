"""Greedy k-centre selection of a coreset: the exact sequence, without a pass over all rows a step.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, algorithm 1;
Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: its covering radius is
at most twice the smallest possible one. Differences from the paper: distances are taken in the
full space, not in a random projection, and the first centre is given.

Plain greedy measures every row against each new centre, one matrix-vector product a step, and is
bound by memory. Here a row's distance to the selected set is kept as an upper bound `bound[i]`,
true for the first `seen[i]` centres: it can only fall. Why the sequence is that of plain greedy:

1. *Flush*: rows whose bound exceeds a threshold are measured against the centres that they have
   not seen. All others are at most `threshold` away.
2. *Pool*: the rows with the largest, now exact, distances. Every row outside the pool is at most
   `tau` away, now and for ever.
3. *Local greedy* in the pool: while its farthest row is farther than `tau`, no row outside can be
   the next centre, and the pool alone decides. When it is not, flush again.

A matrix product only rules out centres that cannot be nearer, given its rounding; the others are
measured by direct differences of the rows as they are given. So neither an offset nor a far row
nor the BLAS kernel changes the order, equal distances are ties, and coinciding rows have distance
0; two candidates whose distances agree to about 1e-6 may still change places.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64

Progress = Callable[[int, int], None]

# Rows in a pool. Time is flat between 512 and 4096 (docs/architecture.md, "Coreset").
_POOL = 2048
# Rows x centres of one matrix product of a flush: 1024 x 8192 float32 = 32 MiB.
_FLUSH_ROWS, _FLUSH_CENTRES = 1024, 8192
# Pairs that are measured at a time: 4096 x 1536 float32 = 24 MiB, three times.
_PAIRS = 256


@dataclass(frozen=True)
class Coreset:
    """Selected rows in order of selection; every prefix is the coreset of that size.

    `radii[i]` is the covering radius after `i + 1` centres: the largest distance of any row to its
    nearest centre.
    """

    indices: Int64[np.ndarray, " size"]
    radii: Float32[np.ndarray, " size"]


def greedy(
    rows: Float32[np.ndarray, "rows dim"],
    size: int,
    *,
    start: int = 0,
    progress: Progress | None = None,
) -> Coreset:
    """Return `size` rows, each the farthest from those before it; ties go to the lowest index.

    It ends early, with fewer rows, when every row coincides with a selected one. At most
    O(rows * size * dim) time; memory beside `rows` is one copy of them, 16 bytes a row, and
    64 MiB of buffers.

    Args:
        rows: Not changed.
        size: From 1 to the number of rows.
        start: The first centre.
        progress: Called with (selected, size) now and then.

    Raises:
        ValueError: if `size` or `start` does not fit the number of rows.
    """
    if not 1 <= size <= len(rows) or not 0 <= start < len(rows):
        raise ValueError(f"size {size} and start {start} do not fit {len(rows)} rows")
    state = _State.of(rows, size)
    state.append(start)
    radii: list[float] = []
    threshold, share = -1.0, 0.9
    while len(radii) < size:
        stale = state.flush(threshold)
        pool, tau = state.pool(threshold)
        if len(pool) == 0:
            farthest = float(state.bound.max())
            if farthest == 0:
                radii.append(0.0)
                break
            threshold = share * farthest
            continue
        if not state.select(pool, tau, size, radii):
            break
        # Aim at a flush that touches between one and three pools.
        share = min(0.97, share + 0.05) if stale > 3 * _POOL else max(0.3, share - 0.05)
        threshold = share * tau
        if progress is not None:
            progress(state.count, size)
    return Coreset(
        np.asarray(state.indices[: state.count], np.int64), np.sqrt(np.asarray(radii, np.float32))
    )


@dataclass
class _State:
    """Rows as (x - mean, 1) and centres as (-2 c, |c|^2): one product gives |x - c|^2 - |x|^2."""

    given: Float32[np.ndarray, "rows dim"]
    rows: Float32[np.ndarray, "rows dim_1"]
    norms: Float32[np.ndarray, " rows"]
    # Squared distance to the nearest of the first `seen` centres, by direct differences.
    bound: Float32[np.ndarray, " rows"]
    seen: np.ndarray
    centres: Float32[np.ndarray, "size dim_1"]
    indices: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: np.ndarray, size: int) -> "_State":
        count, dim = rows.shape
        augmented = np.empty((count, dim + 1), np.float32)
        # Centred, because |x|^2 + |c|^2 - 2 x.c loses digits where the mean is far from zero.
        np.subtract(
            rows, rows.mean(axis=0, dtype=np.float64).astype(np.float32), out=augmented[:, :dim]
        )
        augmented[:, dim] = 1
        norms = np.einsum("nd,nd->n", augmented[:, :dim], augmented[:, :dim])
        return cls(
            given=rows,
            rows=augmented,
            norms=norms,
            bound=np.full(count, np.inf, np.float32),
            seen=np.zeros(count, np.int32),
            centres=np.empty((size, dim + 1), np.float32),
        )

    @property
    def count(self) -> int:
        return len(self.indices)

    def append(self, row: int) -> None:
        self.centres[self.count, :-1] = -2 * self.rows[row, :-1]
        self.centres[self.count, -1] = self.norms[row]
        self.indices.append(row)

    def flush(self, threshold: float) -> int:
        """Bring rows with a bound above the threshold up to date; return how many there were."""
        stale = np.flatnonzero((self.bound > threshold) & (self.seen < self.count))
        stale = stale[np.argsort(self.seen[stale], kind="stable")]
        for begin in range(0, len(stale), _FLUSH_ROWS):
            block = stale[begin : begin + _FLUSH_ROWS]
            whole = len(block) == len(self.rows)
            rows = self.rows if whole else self.rows[block]
            for first in range(int(self.seen[block[0]]), self.count, _FLUSH_CENTRES):
                last = min(first + _FLUSH_CENTRES, self.count)
                product = rows @ self.centres[first:last].T
                slack = self.slack(block)
                limit = np.minimum(
                    self.bound[block] - self.norms[block], product.min(axis=1) + slack
                )
                # Flat, then divided: np.nonzero of two axes is several times slower.
                near = np.flatnonzero(product <= (limit + slack)[:, None])
                row, centre = np.divmod(near, last - first)
                self.measure(block[row], first + centre)
            self.seen[block] = self.count
        return len(stale)

    def slack(self, block: np.ndarray) -> Float32[np.ndarray, " block"]:
        """Return the largest error of a product with a centre nearer than the bound.

        A float32 dot product of length d errs by about sqrt(d) * 2^-24 * |x||c|, and such a
        centre has |c| <= |x| + |x - c|; eight times that is beyond what blocked sums reach.
        """
        reach = np.sqrt(self.norms[block]) + np.sqrt(self.bound[block])
        slack: np.ndarray = np.float32(8 * np.sqrt(self.rows.shape[1]) * 2**-24) * reach * reach
        return slack

    def measure(self, rows: np.ndarray, centres: np.ndarray) -> None:
        """Lower the bound of each row to its distance to the centre beside it."""
        selected = np.asarray(self.indices)[centres]
        for begin in range(0, len(rows), _PAIRS):
            some = rows[begin : begin + _PAIRS]
            direct = _squared(self.given[some], self.given[selected[begin : begin + _PAIRS]])
            np.minimum.at(self.bound, some, direct)

    def pool(self, threshold: float) -> tuple[np.ndarray, float]:
        """Return the farthest rows, and a distance that none of the others exceeds."""
        above = np.flatnonzero(self.bound > threshold)
        if len(above) <= _POOL:
            return above, max(threshold, 0.0)
        bounds = self.bound[above]
        tau = float(np.partition(bounds, len(above) - _POOL - 1)[len(above) - _POOL - 1])
        pool = above[bounds > tau]
        # More rows than a pool are equally far: the lowest of them is the next centre.
        return (pool, tau) if len(pool) else (above[bounds.argmax()][None], tau)

    def select(self, pool: np.ndarray, tau: float, size: int, radii: list[float]) -> bool:
        """Greedy inside the pool, at least one centre; return whether to go on."""
        rows, norms, given = self.rows[pool], self.norms[pool], self.given[pool]
        distance, slack = self.bound[pool], self.slack(pool)
        picked = 0
        while True:
            farthest = int(distance.argmax())
            largest = float(distance[farthest])
            if largest == 0 or (picked and largest <= tau):
                break
            radii.append(largest)
            if len(radii) == size:
                return False
            self.append(int(pool[farthest]))
            picked += 1
            # Only where the product says that the new centre may be nearer is it measured.
            product = rows @ self.centres[self.count - 1] + norms
            closer = np.flatnonzero(product < distance + slack)
            direct = _squared(given[closer], given[farthest])
            distance[closer] = np.minimum(distance[closer], direct)
        self.bound[pool] = distance
        self.seen[pool] = self.count
        return True


def _squared(left: np.ndarray, right: np.ndarray) -> Float32[np.ndarray, " rows"]:
    difference = left - right
    squared: np.ndarray = np.einsum("nd,nd->n", difference, difference)
    return squared
