"""Thumbnails: what tells whether two photos are of one part."""

import numpy as np
from jaxtyping import Int16, UInt8

# Of a side, in cells. With 8, half as many look-alikes of real tiles were told apart.
SIDE = 16


def thumbnail(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "16 16"]:
    """Return the mean grey level of each of 16 x 16 equal cells of a model's input.

    Args:
        pixels: At least 16 a side; what is left of sides that 16 does not divide is in the cells
            before it.
    """
    return thumbnail_of(colour_sums(pixels))


def colour_sums(pixels: UInt8[np.ndarray, "h w 3"]) -> Int16[np.ndarray, "h w"]:
    """Return the sum of the colours of each pixel: three times its grey level."""
    sums = pixels[..., 0].astype(np.int16)
    sums += pixels[..., 1]
    sums += pixels[..., 2]
    return sums


def thumbnail_of(colours: Int16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "16 16"]:
    """Return the thumbnail of a picture by what `colour_sums` returns of it."""
    height, width = colours.shape
    rows, columns = (np.arange(SIDE) * side // SIDE for side in (height, width))
    # Rows first: a cell's are few, and lie one after the other.
    across = np.add.reduceat(colours, rows, axis=0, dtype=np.int64)
    sums = np.add.reduceat(across, columns, axis=1)
    counts = np.maximum(1, np.outer(np.diff(rows, append=height), np.diff(columns, append=width)))
    levels: np.ndarray = np.rint(sums / (3 * counts)).astype(np.uint8)
    return levels
