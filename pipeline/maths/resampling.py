"""Resizing and smoothing of a map as products with small matrices.

Both operations are linear and separable, so a map [h, w] is resized or smoothed as
`rows @ map @ columns.T`, with one matrix for each axis. The matrices depend on sizes only, are
cached, and are shared by every map of a run; they are read-only for that reason.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from scipy import ndimage


# 32 matrices from a grid of 28 or 224 to sides of up to 1024 pixels: 32 * 1024 * 224 * 8 B = 59 MB.
@lru_cache(maxsize=32)
def bilinear_matrix(size_out: int, size_in: int) -> Float64[np.ndarray, "{size_out} {size_in}"]:
    """Return the operator that resamples one axis linearly, without antialiasing.

    The operator of torch's `F.interpolate(mode="bilinear", align_corners=False)` along one axis:
    pixels are areas, so output pixel i lies at input coordinate (i + 1/2) * size_in / size_out -
    1/2, and coordinates beyond the outermost pixel centres take the outermost values. Rows sum to
    one. The array is shared and read-only.

    Args:
        size_out: Length of the resampled axis, in pixels, at least 1.
        size_in: Length of the axis as it is, in pixels, at least 1.

    Raises:
        ValueError: if a size is below 1.
    """
    if min(size_out, size_in) < 1:
        msg = f"an axis of {size_in} pixels cannot be resampled to {size_out}; both must be >= 1"
        raise ValueError(msg)
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    centres = np.clip(centres, 0, size_in - 1)
    # The hat function: weight 1 at a pixel centre, falling to 0 at its neighbours' centres.
    away = np.abs(centres[:, np.newaxis] - np.arange(size_in))
    matrix: Float64[np.ndarray, "size_out size_in"] = np.maximum(1.0 - away, 0.0)
    matrix.setflags(write=False)
    return matrix


# A run smooths at one or two sizes: 8 matrices * 1024 * 1024 * 8 B = 67 MB at most.
@lru_cache(maxsize=8)
def gaussian_matrix(size: int, sigma: float) -> Float64[np.ndarray, "{size} {size}"]:
    """Return the operator that smooths one axis by a Gaussian.

    The operator of `scipy.ndimage.gaussian_filter` with its defaults: mode "reflect" (d c b a |
    a b c d | d c b a) and a kernel cut at 4 sigma. Rows sum to one. The array is shared and
    read-only.

    Args:
        size: Length of the axis, in pixels, at least 1.
        sigma: Standard deviation, in pixels; 0 gives the identity.

    Raises:
        ValueError: if `size` is below 1 or `sigma` is negative or not finite.
    """
    if size < 1 or not 0 <= sigma < np.inf:
        msg = f"size {size} must be >= 1 pixel and sigma {sigma} a finite number of pixels >= 0"
        raise ValueError(msg)
    # A linear operator's matrix is what it makes of the unit vectors; columns are not smoothed.
    matrix: Float64[np.ndarray, "size size"] = ndimage.gaussian_filter(np.eye(size), (sigma, 0.0))
    matrix.setflags(write=False)
    return matrix


def smoothed_rows(
    rows: Int64[np.ndarray, " rows"], size: int, size_in: int, sigma: float
) -> Float64[np.ndarray, "rows {size_in}"]:
    """Return rows of `gaussian_matrix(size, sigma) @ bilinear_matrix(size, size_in)`.

    To rounding: those matrices are not made, of which the first has the square of a side.

    Args:
        rows: Which, from 0 to `size` - 1.
        size: Length of the axis, in pixels, at least 1.
        size_in: Length of the map's axis, at least 1.
        sigma: Standard deviation, in pixels; above 0.
    """
    reach = int(4 * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum()
    # As mode "reflect" has it, however often a short axis is reflected.
    around = (rows[:, np.newaxis] + taps) % (2 * size)
    around = np.minimum(around, 2 * size - 1 - around)
    places = np.clip((around + 0.5) * (size_in / size) - 0.5, 0, size_in - 1)
    before = np.minimum(places.astype(np.intp), max(0, size_in - 2))
    share = places - before
    found = np.zeros((len(rows), size_in))
    lines = np.arange(len(rows))[:, np.newaxis]
    np.add.at(found, (lines, before), weights * (1 - share))
    np.add.at(found, (lines, np.minimum(before + 1, size_in - 1)), weights * share)
    return found
