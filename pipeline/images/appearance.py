"""How bright and how sharp a model's input is, by which nights are compared.

Sharpness is the root mean square of the Laplacian (each pixel less the mean of its four
neighbours), in grey levels, as a share of that of the difference between neighbours. It is of what
is finest in a picture, of all that varies from pixel to pixel. So it is the same in any light and
at any contrast, and about the same for a part with more or fewer edges; a picture out of focus has
less of it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from patchlake.pipeline.maths.interior import Interior


class Appearance(NamedTuple):
    """Two numbers of a picture."""

    # Mean grey level, 0 to 255.
    brightness: float
    # 0 to 2: of white noise 0.79, of a picture that is one edge or smooth much less.
    sharpness: float


def appearance(pixels: UInt8[np.ndarray, "h w 3"], interior: Interior | None = None) -> Appearance:
    """Return brightness and sharpness of a model's input; whole sums, so the same everywhere.

    Args:
        pixels: The input.
        interior: What of it counts; None: all.
    """
    # Three times the grey level.
    grey = pixels[..., 0].astype(np.int32)
    grey += pixels[..., 1]
    grey += pixels[..., 2]
    inside = None if interior is None or interior.is_whole else interior.pixels()
    counted = grey if inside is None else grey[inside]
    brightness = counted.sum(dtype=np.int64) / (3 * max(1, counted.size))
    return Appearance(float(brightness), _sharpness(grey, inside))


def _sharpness(grey: Int32[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"] | None) -> float:
    """Return the sharpness; 0 where nothing varies, or nothing is inside but a border."""
    across = grey[1:-1, 1:] - grey[1:-1, :-1]
    down = grey[1:, 1:-1] - grey[:-1, 1:-1]
    # Four times the Laplacian of three times the grey level.
    curved = across[:, :-1] - across[:, 1:] + down[:-1] - down[1:]
    across, down = across[:, 1:], down[1:]
    if inside is not None:
        # A pixel counts where it and its four neighbours do.
        kept = inside[1:-1, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        kept &= inside[:-2, 1:-1] & inside[2:, 1:-1]
        curved, across, down = curved[kept], across[kept], down[kept]
    varied = (_squared(across) + _squared(down)) / 2
    return float(np.sqrt(_squared(curved) / 16 / varied)) if varied else 0.0


def _squared(values: Int32[np.ndarray, "*some"]) -> int:
    """Return the sum of squares; each is below 2**24, and whole numbers add up exactly."""
    flat = values.ravel()
    return int(np.einsum("i,i->", flat, flat, dtype=np.int64))
