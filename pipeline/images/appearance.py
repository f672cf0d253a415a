"""How bright and how sharp a model's input is, and how it looks: by that nights are compared.

Sharpness is the root mean square of the Laplacian (each pixel less the mean of its four
neighbours), in grey levels, as a share of that of the difference between neighbours. It is of what
is finest in a picture, of all that varies from pixel to pixel. So it is the same in any light and
at any contrast, and about the same for a part with more or fewer edges; a picture out of focus has
less of it. On magnetic tiles a Gaussian blur of one pixel of the photo lowers it by 4.6 standard
deviations of a photo, and the Laplacian alone, which varies with the surface, by 3.0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, UInt8

from patchlake.pipeline.images.thumbnails import colour_sums, thumbnail_of
from patchlake.pipeline.maths.interior import Interior


class Appearance(NamedTuple):
    """What is said of a picture."""

    # Mean grey level, 0 to 255.
    brightness: float
    # 0 to 1.6; of noise without any structure 0.79, of smooth surfaces and edges less.
    sharpness: float
    # `images.thumbnails`, row by row, of all of it.
    thumbnail: bytes


def appearance(pixels: UInt8[np.ndarray, "h w 3"], interior: Interior | None = None) -> Appearance:
    """Return brightness, sharpness and thumbnail of a model's input, at least 16 pixels a side.

    All sums are of whole numbers that float64 holds, and so the same everywhere. Takes 0.2 ms of a
    picture of 224 x 224.

    Args:
        pixels: The input.
        interior: What of it counts; None: all.
    """
    grey = colour_sums(pixels)
    inside = None if interior is None or interior.is_whole else interior.pixels()
    counted = grey if inside is None else grey[inside]
    brightness = counted.sum(dtype=np.int64) / (3 * max(1, counted.size))
    return Appearance(float(brightness), _sharpness(grey, inside), thumbnail_of(grey).tobytes())


def _sharpness(grey: Int16[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"] | None) -> float:
    """Return the sharpness; 0 where nothing varies, or nothing but a border is inside.

    By every second row, which tells as much.
    """
    above, rows, below = grey[:-2:2], grey[1:-1:2], grey[2::2]
    across, down = rows[:, 1:] - rows[:, :-1], below - rows
    # Four times the Laplacian.
    curved = across[:, 1:] - across[:, :-1]
    curved += down[:, 1:-1]
    curved -= (rows - above)[:, 1:-1]
    across, down = across[:, 1:], down[:, 1:-1]
    if inside is not None:
        # A pixel counts where it and its four neighbours do.
        own = inside[1:-1:2]
        kept = own[:, 1:-1] & own[:, :-2] & own[:, 2:]
        kept &= inside[:-2:2, 1:-1] & inside[2::2, 1:-1]
        across, down, curved = across[kept], down[kept], curved[kept]
    varied = (_squared(across) + _squared(down)) / 2
    return float(np.sqrt(_squared(curved) / 16 / varied)) if varied else 0.0


def _squared(values: Int16[np.ndarray, "*some"]) -> float:
    """Return the sum of squares. Each is below 2**24, so those of a gigapixel add up exactly."""
    flat = values.ravel().astype(np.float64)
    return float(flat @ flat)
