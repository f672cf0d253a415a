"""A coreset of more rows than one memory holds: parts select, and their union is selected again.

Malkomes et al., "Fast Distributed k-Center Clustering with Outliers on Massive Data", NeurIPS 2015
(greedy on each part, then on the union: a 4-approximation with local coresets of the final size);
Ceccarello et al., "Solving k-center Clustering (with Outliers) in MapReduce and Streaming", VLDB
2019 (larger local coresets bring it towards 2). Here the local sizes follow from how many rows the
union may have, so that the proven bound is computed, not assumed.
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
class Parts(Protocol):
    """The rows, in parts that fit a memory each, wherever they are."""

    def each(self, work: Callable[[Rows], T]) -> Iterable[T]:
        """Yield the result of `work` on each part, in the order of the parts."""


@dataclass(frozen=True)
class PartitionedCoreset:
    """Selected rows, as indices into the parts one after the other.

    `radius` is the covering radius; `bound` is what is known of it without looking again: every row
    has a local centre within its part's radius, and that has a centre within the union's.
    """

    indices: Int64[np.ndarray, " size"]
    radius: float
    bound: float


@dataclass(frozen=True)
class _Local:
    rows: Rows
    indices: Int64[np.ndarray, " local"]
    radius: float
    # Rows of the part.
    total: int


def partitioned(
    parts: Parts, size: int, share: float, *, threads: int = 1, progress: Progress | None = None
) -> PartitionedCoreset:
    """Return `size` rows selected from the local coresets of all parts.

    A function of the parts in their order: who works on them, and when, does not matter. Two passes
    over the rows, for selecting and for the radius.

    Args:
        parts: Not empty, as a whole.
        size: At most the rows of the union.
        share: Of each part's rows that goes into the union, 0..1; at least one row of each does.
        threads: Of the selection from the union; changes no result.
        progress: Called with (selected, size) during that selection.
    """
    union, indices, radius = _unite(parts.each(partial(_select_locally, share=share)))
    chosen = greedy(union, min(size, len(union)), threads=threads, progress=progress)
    centres = union[chosen.indices]
    return PartitionedCoreset(
        indices=indices[chosen.indices],
        radius=covering_radius(parts, centres),
        bound=radius + float(chosen.radii[-1]),
    )


def _unite(locals_: Iterable[_Local]) -> tuple[Rows, Int64[np.ndarray, " union"], float]:
    """Return the union's rows, their indices through all parts, and the largest local radius.

    Rows are copied as they come into one array that grows: a list of them, joined at the end,
    would be in memory twice.
    """
    union, filled = np.empty((0, 0), np.float32), 0
    indices, offset, radius = [], 0, 0.0
    for local in locals_:
        needed = filled + len(local.rows)
        if needed > len(union):
            # realloc moves pages instead of copying them. Nothing else refers to the array.
            union.resize((needed + needed // 8, local.rows.shape[1]), refcheck=False)
        union[filled:needed] = local.rows
        filled = needed
        indices.append(local.indices + offset)
        offset += local.total
        radius = max(radius, local.radius)
    return union[:filled], np.concatenate(indices), radius


def extended(
    parts: Parts,
    centres: Float32[np.ndarray, "given dim"],
    size: int,
    share: float,
    *,
    threads: int = 1,
) -> PartitionedCoreset:
    """Return `size` rows more than the centres given, from what each part selects after them.

    As `partitioned`; the radius and its bound are of the rows of the parts.

    Args:
        parts: Not empty, as a whole.
        centres: At least one; they need not be rows.
        size: At most the rows of the union; it may be 0.
        share: As of `partitioned`.
        threads: As of `partitioned`.
    """
    extend_locally = partial(_extend_locally, centres=centres, share=share)
    union, indices, local_radius = _unite(parts.each(extend_locally))
    radius = 0.0
    if len(union):
        chosen = extend(union, centres, min(size, len(union)), threads=threads)
        union, indices = union[chosen.indices], indices[chosen.indices]
        radius = float(chosen.radii[-1])
    return PartitionedCoreset(
        indices=indices,
        radius=covering_radius(parts, np.concatenate([centres, union])),
        bound=local_radius + radius,
    )


def covering_radius(parts: Parts, centres: Float32[np.ndarray, "centres dim"]) -> float:
    """Return the largest distance of any row to its nearest centre."""
    return max(parts.each(partial(_radius, centres=centres)))


def _select_locally(rows: Rows, share: float) -> _Local:
    size = min(len(rows), max(1, int(np.ceil(len(rows) * share))))
    selected = greedy(rows, size)
    return _Local(rows[selected.indices], selected.indices, float(selected.radii[-1]), len(rows))


def _extend_locally(rows: Rows, centres: Float32[np.ndarray, "given dim"], share: float) -> _Local:
    size = min(len(rows), max(1, int(np.ceil(len(rows) * share))))
    selected = extend(rows, centres, size)
    return _Local(rows[selected.indices], selected.indices, float(selected.radii[-1]), len(rows))


def _radius(rows: Rows, centres: Float32[np.ndarray, "centres dim"]) -> float:
    # A threshold below 0 brings every bound up to date, so that the reach is exact.
    return float(np.sqrt(Shard(rows, pool=1).farthest(centres, -1.0).reach))
