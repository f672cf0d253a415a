"""A coreset of more rows than fit in memory: a selection from selections.

The rows are divided into portions. A coreset is selected from each portion, and the final one from
the union of those local coresets.

Malkomes et al., "Fast Distributed k-Center Clustering with Outliers on Massive Data", NeurIPS 2015
(greedy on each portion, then on the union: a 4-approximation with local coresets of the final
size); Ceccarello et al., "Solving k-center Clustering (with Outliers) in MapReduce and Streaming",
VLDB 2019 (larger local coresets bring it towards 2). Here the sizes of the local coresets follow
from how many rows the union may have, so that the proven bound is computed, not assumed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.maths.coreset import Progress, extend, greedy
from patchlake.pipeline.maths.shard import Shard

T = TypeVar("T")

Rows = Float32[np.ndarray, "rows dim"]


@runtime_checkable
class Portions(Protocol):
    """All rows, wherever they are, in portions each of which fits in memory."""

    def each(self, work: Callable[[Rows], T]) -> Iterable[T]:
        """Yield the result of `work` on each portion, in their order."""


@dataclass(frozen=True)
class PartitionedCoreset:
    """Selected rows, as indices into all portions one after the other.

    `radius` is the covering radius, as measured. `bound` is what proves it to be no larger than
    that without measuring: every row has a local centre within the radius of its portion's coreset,
    and that local centre has a centre within the radius of the selection from the union.
    """

    indices: Int64[np.ndarray, " size"]
    radius: float
    bound: float


@dataclass(frozen=True)
class LocalCoreset:
    """The rows selected from one portion, and their indices within it."""

    rows: Rows
    indices: Int64[np.ndarray, " local"]
    radius: float
    # How many rows the portion has.
    total: int


def partitioned(
    portions: Portions,
    size: int,
    share: float,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> PartitionedCoreset:
    """Return `size` rows selected from the local coresets of all portions.

    The result depends on the portions and their order; who works on them, and when, does not
    matter. It takes two passes over the rows: one to select, and one to measure the radius.

    Args:
        portions: At least one row in all.
        size: At most the rows of the union.
        share: Share of each portion's rows that goes into the union, 0..1; at least one row of each
            portion does.
        threads: Threads of the selection from the union; they change no result.
        progress: Called with (selected, size) during that selection.
    """
    union, indices, radius = unite(portions.each(partial(_select_locally, share=share)))
    chosen = greedy(union, min(size, len(union)), threads=threads, progress=progress)
    centres = union[chosen.indices]
    return PartitionedCoreset(
        indices=indices[chosen.indices],
        radius=covering_radius(portions, centres),
        bound=radius + float(chosen.radii[-1]),
    )


def unite(coresets: Iterable[LocalCoreset]) -> tuple[Rows, Int64[np.ndarray, " union"], float]:
    """Return the union's rows, their indices into all portions, and the largest local radius.

    Rows are copied into one growing array as they come. If they were kept in a list and joined at
    the end, they would be in memory twice.
    """
    union, filled = np.empty((0, 0), np.float32), 0
    indices, offset, radius = [], 0, 0.0
    for local in coresets:
        needed = filled + len(local.rows)
        if needed > len(union):
            # `resize` moves the pages of memory instead of copying them. It must not check for
            # other references to the array: there are none.
            union.resize((needed + needed // 8, local.rows.shape[1]), refcheck=False)
        union[filled:needed] = local.rows
        filled = needed
        indices.append(local.indices + offset)
        offset += local.total
        radius = max(radius, local.radius)
    return union[:filled], np.concatenate(indices), radius


def extended(
    portions: Portions,
    centres: Float32[np.ndarray, "given dim"],
    size: int,
    share: float,
    *,
    threads: int = 1,
) -> PartitionedCoreset:
    """Return `size` rows selected after given centres, from local selections after those centres.

    It continues `partitioned`. The radius and its bound are those of the rows of the portions.

    Args:
        portions: At least one row in all.
        centres: At least one; they need not be rows.
        size: At most the rows of the union; it may be 0.
        share: As for `partitioned`.
        threads: As for `partitioned`.
    """
    extend_locally = partial(_extend_locally, centres=centres, share=share)
    union, indices, local_radius = unite(portions.each(extend_locally))
    radius = 0.0
    if len(union):
        chosen = extend(union, centres, min(size, len(union)), threads=threads)
        union, indices = union[chosen.indices], indices[chosen.indices]
        radius = float(chosen.radii[-1])
    return PartitionedCoreset(
        indices=indices,
        radius=covering_radius(portions, np.concatenate([centres, union])),
        bound=local_radius + radius,
    )


def covering_radius(portions: Portions, centres: Float32[np.ndarray, "centres dim"]) -> float:
    """Return the largest distance of any row to its nearest centre."""
    return max(portions.each(partial(_radius, centres=centres)))


def _select_locally(rows: Rows, share: float) -> LocalCoreset:
    size = min(len(rows), max(1, int(np.ceil(len(rows) * share))))
    selected = greedy(rows, size)
    return LocalCoreset(
        rows[selected.indices], selected.indices, float(selected.radii[-1]), len(rows)
    )


def _extend_locally(
    rows: Rows, centres: Float32[np.ndarray, "given dim"], share: float
) -> LocalCoreset:
    size = min(len(rows), max(1, int(np.ceil(len(rows) * share))))
    selected = extend(rows, centres, size)
    return LocalCoreset(
        rows[selected.indices], selected.indices, float(selected.radii[-1]), len(rows)
    )


def _radius(rows: Rows, centres: Float32[np.ndarray, "centres dim"]) -> float:
    # With a threshold below 0 every row is compared with all centres, so that the reach, which is
    # only a bound otherwise, is the largest distance.
    return float(np.sqrt(Shard(rows, pool=1).farthest(centres, -1.0).reach))
