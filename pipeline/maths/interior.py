"""Which pixels of a model's input count, which patches do, and what stands in the others' places.

A patch is inside where at least half of its cell is. A grid whose cells are all too large for that
(a coarse layer, a small region) has the one inside of which most is, so that each layer has
something to say.
"""

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

_SIZE = struct.Struct("<II")
# Half of a cell, less than the rounding of a sum of areas.
_HALF = 0.5 - 1e-9


@dataclass(frozen=True)
class Interior:
    """The pixels of a model's input that are inside a region of interest."""

    # Of the input, in pixels.
    height: int
    width: int
    # A bit a pixel, row by row, compressed: a few hundred bytes.
    bits: bytes

    @classmethod
    def of(cls, inside: Bool[np.ndarray, "h w"]) -> "Interior":
        """Return the interior of a truth value for each pixel."""
        height, width = inside.shape
        return cls(height, width, zlib.compress(np.packbits(inside).tobytes(), 1))

    def to_bytes(self) -> bytes:
        """Return it as it travels beside an image; `from_bytes` undoes it."""
        return _SIZE.pack(self.height, self.width) + self.bits

    @classmethod
    def from_bytes(cls, content: bytes) -> "Interior":
        """Return the interior that `to_bytes` wrote."""
        height, width = _SIZE.unpack_from(content)
        return cls(height, width, content[_SIZE.size :])

    @property
    def is_whole(self) -> bool:
        """Whether all pixels are inside, so that nothing is to be done."""
        return bool(_pixels(self).all())

    def pixels(self) -> Bool[np.ndarray, "h w"]:
        """Return which pixels are inside. The array is shared and read-only."""
        return _pixels(self)

    def cells(self, grid: tuple[int, int]) -> Bool[np.ndarray, "rows columns"]:
        """Return the cells of a patch grid of which half is inside; there may be none.

        Args:
            grid: Rows and columns. It lies over the whole input.
        """
        return np.asarray(_shares(self, grid) >= _HALF)

    def sources(self, grid: tuple[int, int]) -> Int64[np.ndarray, " cells"]:
        """Return for each cell of a grid, row by row, the number of the nearest one inside.

        A cell inside is its own. Of a grid without any, it is the cell of which most is inside,
        and the first of equal ones.
        """
        return _sources(self, grid)

    def patches(self, grid: tuple[int, int]) -> Bool[np.ndarray, "rows columns"]:
        """Return the cells of a grid that count: those that are sources, one at least."""
        found = np.zeros(grid[0] * grid[1], bool)
        found[_sources(self, grid)] = True
        return found.reshape(grid)

    def within(
        self, anomaly_map: Float32[np.ndarray, "rows columns"]
    ) -> Float32[np.ndarray, "rows columns"]:
        """Return a map whose cells outside have its lowest value inside."""
        rows, columns = anomaly_map.shape
        inside = self.patches((rows, columns))
        lowered: np.ndarray = np.where(inside, anomaly_map, anomaly_map[inside].min())
        return lowered


# What images of a group have in common is worked out once. A megapixel is a megabyte.
@lru_cache(maxsize=16)
def _pixels(interior: Interior) -> Bool[np.ndarray, "h w"]:
    size = interior.height * interior.width
    packed = np.frombuffer(zlib.decompress(interior.bits), np.uint8)
    found = np.unpackbits(packed, count=size).astype(bool).reshape(interior.height, interior.width)
    found.setflags(write=False)
    return found


@lru_cache(maxsize=64)
def _sources(interior: Interior, grid: tuple[int, int]) -> Int64[np.ndarray, " cells"]:
    # Decoding processes import this module, and would take longer for scipy than for all the rest.
    from scipy import ndimage

    shares = _shares(interior, grid)
    inside = shares >= _HALF
    if not inside.any():
        inside.flat[shares.argmax()] = True
    rows, columns = ndimage.distance_transform_edt(
        ~inside, return_distances=False, return_indices=True
    )
    found: np.ndarray = np.ravel_multi_index((rows, columns), grid).ravel().astype(np.int64)
    found.setflags(write=False)
    return found


def _shares(interior: Interior, grid: tuple[int, int]) -> Float64[np.ndarray, "rows columns"]:
    """Return the share of each cell that is inside."""
    down, across = _areas(grid[0], interior.height), _areas(grid[1], interior.width)
    shares: np.ndarray = down @ _pixels(interior).astype(np.float64) @ across.T
    return shares


@lru_cache(maxsize=32)
def _areas(cells: int, pixels: int) -> Float64[np.ndarray, "cells pixels"]:
    """Return what share of each cell of an axis each pixel is."""
    side = pixels / cells
    begin = np.arange(cells)[:, np.newaxis] * side
    at = np.arange(pixels)
    overlap = np.minimum(begin + side, at + 1) - np.maximum(begin, at)
    areas: np.ndarray = np.maximum(overlap, 0) / side
    areas.setflags(write=False)
    return areas
