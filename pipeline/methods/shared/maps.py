"""Maps of several layers, each on the grid of its layer: named, joined to one, and summed up."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.maths.resampling import bilinear_matrix


def layer_names(arrays: Mapping[str, object]) -> list[str]:
    """Return the names of the layers among these, the finest first."""
    # Numbered without a gap; what else there is has other names.
    return [name for name in (f"layer{number}" for number in range(len(arrays))) if name in arrays]


def mean_on_finest_grid(grids: Sequence[np.ndarray]) -> Float32[np.ndarray, "rows columns"]:
    """Return the mean of float64 maps (y, x) on the finest of their grids, bilinearly."""
    rows, columns = max((grid.shape for grid in grids), key=lambda shape: shape[0] * shape[1])
    total = np.zeros((rows, columns))
    for grid in grids:
        if grid.shape == total.shape:
            total += grid
            continue
        # Without BLAS, whose last bits can depend on the number of threads.
        tall = np.einsum("yr,rc->yc", bilinear_matrix(rows, grid.shape[0]), grid)
        total += np.einsum("yc,xc->yx", tall, bilinear_matrix(columns, grid.shape[1]))
    mean: np.ndarray = (total / len(grids)).astype(np.float32)
    return mean


def mean_of_largest(
    maps: Float32[np.ndarray, "images rows columns"], fraction: float
) -> Float32[np.ndarray, " images"]:
    """Return the mean of each map's largest values: the fraction rounded down, one at least."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(flat.shape[1] * fraction))
    largest = np.sort(flat, axis=1)[:, -count:]
    mean: np.ndarray = largest.mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32)
