"""Thumbnails: what tells whether two photos are of one part."""

import numpy as np
from jaxtyping import UInt8

# Of a side, in cells. With 8, half as many look-alikes of real tiles were told apart.
SIDE = 16


def thumbnail(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "16 16"]:
    """Return the mean grey level of each of 16 x 16 equal cells of a model's input.

    Args:
        pixels: At least 16 a side; what is left of sides that 16 does not divide is in the cells
            before it.
    """
    height, width, _ = pixels.shape
    rows, columns = (np.arange(SIDE) * side // SIDE for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(pixels.sum(axis=2), rows), columns, axis=1)
    counts = np.maximum(1, np.outer(np.diff(rows, append=height), np.diff(columns, append=width)))
    levels: np.ndarray = np.rint(sums / (3 * counts)).astype(np.uint8)
    return levels
