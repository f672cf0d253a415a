"""Smoothing of anomaly maps before their largest value is taken."""

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

# 4 pixels of the input, as the papers' code has it, on a grid of every fourth pixel.
_SIGMA = 1.0


def smoothed_peaks(
    maps: Float32[np.ndarray, "images rows columns"],
) -> Float32[np.ndarray, " images"]:
    """Return the maximum of each map after a Gaussian of one patch, borders reflected."""
    smoothed: np.ndarray = gaussian_filter(maps, sigma=_SIGMA, axes=(1, 2))
    peaks: np.ndarray = smoothed.max(axis=(1, 2))
    return peaks
