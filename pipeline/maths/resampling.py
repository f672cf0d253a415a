"""Resizing and smoothing of a map as products with small matrices.

Both operations are linear and separable, so a map [h, w] is resized or smoothed as
`rows @ map @ columns.T`, with one matrix for each axis. The matrices depend on sizes only, are
cached, and are shared by every map of a run; they are read-only for that reason.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64
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
