"""A photo turned about its centre: of few training images, what other positions would look like.

Damm, Laszkiewicz, Lederer, Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection
with DINOv2", WACV 2025 (arXiv 2405.14529): of few references, eight rotations each.

A photo is turned within its own frame, about its centre, as if the part lay otherwise below the
camera. Where the turned photo ends, it goes on as its mirror image, as in the authors' code:
whatever is put there is learned as normal, and a mirror image has the texture of the photo and no
edge. Black corners would teach the bank edges, and hide dark defects.

Deliberate differences: the authors turn the file's pixels, and here these are first resized to
three times the sides of the model's input where they are larger, which costs the same for any
camera (`Geometry.apply`); and a border pixel is repeated once by its mirror image, so that quarters
of a square are exact.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt8

# Pixels turned at a time: what is made of them stays in the cache.
_AT_ONCE = 2**16


def rotated(
    pixels: UInt8[np.ndarray, "h w *channels"], size: tuple[int, int], degrees: float
) -> UInt8[np.ndarray, "h w *channels"]:
    """Return a photo turned counter-clockwise about its centre, within its own frame.

    Bilinear; beyond its borders the photo is its mirror image, again and again.

    Args:
        pixels: Of the photo, which may have been squashed.
        size: (width, height) of the photo, of which only the ratio counts: what is turned is the
            part, and not the squashed picture of it.
        degrees: Any.
    """
    rows, columns = pixels.shape[:2]
    flat = pixels.reshape(rows * columns, -1)
    turned = np.empty_like(flat)
    cos, sin = _cos_sin(degrees)
    # Of a pixel, in units of length in which the photo is `size`.
    across, down = size[0] / columns, size[1] / rows
    x = (np.arange(columns) + 0.5 - columns / 2) * across
    step = max(1, _AT_ONCE // columns)
    for first in range(0, rows, step):
        some = np.arange(first, min(first + step, rows))
        y = (some[:, np.newaxis] + 0.5 - rows / 2) * down
        source_x = ((cos * x - sin * y) / across + (columns - 1) / 2).ravel()
        source_y = ((sin * x + cos * y) / down + (rows - 1) / 2).ravel()
        turned[first * columns : first * columns + source_x.size] = _bilinear(
            flat, (rows, columns), source_y, source_x
        )
    return turned.reshape(pixels.shape)


def _bilinear(
    flat: UInt8[np.ndarray, "pixels channels"],
    shape: tuple[int, int],
    y: np.ndarray,
    x: np.ndarray,
) -> UInt8[np.ndarray, "places channels"]:
    """Return a picture's values at places that may be beyond its borders."""
    top, left = np.floor(y), np.floor(x)
    below, right = ((y - top)[:, np.newaxis], (x - left)[:, np.newaxis])
    above_row, below_row = (mirrored(top + more, shape[0]) * shape[1] for more in (0, 1))
    left_column, right_column = (mirrored(left + more, shape[1]) for more in (0, 1))
    upper = flat[above_row + left_column] * (1 - right) + flat[above_row + right_column] * right
    lower = flat[below_row + left_column] * (1 - right) + flat[below_row + right_column] * right
    found: np.ndarray = np.rint(upper * (1 - below) + lower * below).astype(np.uint8)
    return found


def mirrored(places: np.ndarray, count: int) -> Int64[np.ndarray, " places"]:
    """Return which of `count` pixels of a side is at a place, where the side is mirrored on."""
    within = places.astype(np.int64) % (2 * count)
    return np.asarray(np.minimum(within, 2 * count - 1 - within))


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Return cosine and sine, exact of quarters of a turn."""
    quarters, rest = divmod(degrees, 90)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    return cos, sin
