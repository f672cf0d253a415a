"""Regions of interest: which pixels of a picture count, and the model's input without the others.

What is outside must not reach the network at all, by resizing or by its receptive field. So a pixel
of the model's input is inside only where everything is inside that it may be made of: the pixels of
the file within a pixel and a half of the input's around its centre (resizing takes one, and a JPEG
at a reduced scale at most half a one more). All others become mid-grey.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.geometry import Geometry, crop_offset
from patchlake.pipeline.images.pictures import Picture
from patchlake.pipeline.maths.interior import Interior

# What is outside looks like: half of the range, near the mean that networks were trained with.
BLANK = 128
# Around the centre of a pixel of the input, in its pixels or the file's, whichever are larger.
_REACH = 1.5
# Of a mask that a model keeps, in pixels: it is stretched over the picture anyway.
MAX_MASK_SIDE = 2048
# Pixels of the file that are looked at together.
_STRIP = 2**22


@runtime_checkable
class Interest(Protocol):
    """Which part of an upright picture counts."""

    def __hash__(self) -> int:
        """Equal ones are worked out once."""

    def lines(self, begin: int, end: int, size: tuple[int, int]) -> Bool[np.ndarray, "lines w"]:
        """Return which pixels of some lines of a picture are inside.

        Args:
            begin: The first line.
            end: Behind the last line.
            size: (width, height) of the upright picture, in pixels.
        """


# A corner is (x, y), in widths and heights of the upright picture from its upper left corner.
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Polygons:
    """What is in any of some polygons. A pixel is where its centre is."""

    polygons: tuple[Polygon, ...]

    def lines(self, begin: int, end: int, size: tuple[int, int]) -> Bool[np.ndarray, "lines w"]:
        """Return which pixels of some lines are in a polygon. See `Interest`.

        Where the sides of a polygon cross, what they go around twice is outside.
        """
        width, height = size
        found = np.zeros((end - begin, width), bool)
        at = (np.arange(begin, end) + 0.5) / height
        for polygon in self.polygons:
            # Whoever goes along a line is in or out again at each side that is crossed.
            turns = np.zeros((end - begin, width + 1), bool)
            for (x, y), (to_x, to_y) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
                crossed = np.flatnonzero((y <= at) != (to_y <= at))
                if crossed.size:
                    places = x + (at[crossed] - y) * ((to_x - x) / (to_y - y))
                    columns = np.clip(np.ceil(places * width - 0.5), 0, width).astype(np.intp)
                    turns[crossed, columns] ^= True
            found |= np.logical_xor.accumulate(turns[:, :-1], axis=1)
        return found


@dataclass(frozen=True)
class Painted:
    """What is painted in a mask, which is stretched over the picture."""

    width: int
    height: int
    # A bit a pixel, row by row, compressed.
    bits: bytes

    @classmethod
    def of(cls, inside: Bool[np.ndarray, "h w"]) -> "Painted":
        """Return what is true in an array."""
        height, width = inside.shape
        return cls(width, height, zlib.compress(np.packbits(inside).tobytes(), 1))

    @classmethod
    def checked(cls, width: int, height: int, bits: bytes) -> "Painted":
        """Return what a model keeps. Raises `ValueError` if it is no mask of that size."""
        if not 0 < width <= MAX_MASK_SIDE or not 0 < height <= MAX_MASK_SIDE:
            raise ValueError(f"a mask of {width}x{height} pixels")
        length = -(-width * height // 8)
        try:
            found = zlib.decompressobj().decompress(bits, length + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(found) != length:
            raise ValueError(f"a mask of {width}x{height} pixels whose bits are not as many")
        return cls(width, height, bits)

    def lines(self, begin: int, end: int, size: tuple[int, int]) -> Bool[np.ndarray, "lines w"]:
        """Return which pixels of some lines have their centre in what is painted."""
        width, height = size
        rows = ((np.arange(begin, end) + 0.5) * (self.height / height)).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * (self.width / width)).astype(np.intp)
        return np.asarray(_painted(self)[rows[:, np.newaxis], columns])


# Of images with a mask each, none is asked for again.
@lru_cache(maxsize=8)
def _painted(mask: Painted) -> Bool[np.ndarray, "h w"]:
    packed = np.frombuffer(zlib.decompress(mask.bits), np.uint8)
    count = mask.height * mask.width
    return np.unpackbits(packed, count=count).astype(bool).reshape(mask.height, mask.width)


# What images of one size and group have in common.
@lru_cache(maxsize=64)
def interior_of(interest: Interest, geometry: Geometry, size: tuple[int, int]) -> Interior:
    """Return which pixels of a model's input are made of what is inside alone.

    Args:
        interest: What counts.
        geometry: From the picture to the input.
        size: (width, height) of the upright picture, in pixels of the file.
    """
    width, height = size
    resized_height, resized_width = geometry.resized(width, height)
    down = _reach(geometry.input_size[0], resized_height, height)
    across = _reach(geometry.input_size[1], resized_width, width)
    step = max(1, _STRIP // width)
    strips = [
        _all_between(interest.lines(begin, min(begin + step, height), size).T, across)
        for begin in range(0, height, step)
    ]
    return Interior.of(_all_between(np.concatenate(strips, axis=1).T, down))


def _reach(inputs: int, resized: int, pixels: int) -> Int64[np.ndarray, "inputs 2"]:
    """Return from where to where a side's pixels may be in each pixel of the input."""
    scale = pixels / resized
    centres = (np.arange(inputs) + crop_offset(resized, inputs) + 0.5) * scale
    reach = _REACH * max(scale, 1.0)
    begin = np.clip(np.floor(centres - reach), 0, pixels - 1)
    end = np.clip(np.ceil(centres + reach), begin + 1, pixels)
    return np.stack([begin, end], axis=1).astype(np.int64)


def _all_between(
    values: Bool[np.ndarray, "lines other"], between: Int64[np.ndarray, "inputs 2"]
) -> Bool[np.ndarray, "inputs other"]:
    """Return whether all of the lines from one to another are true, for each such pair."""
    # Every second result is of what lies between two pairs. The last line ends the last pair.
    padded = np.concatenate([values, np.ones((1, values.shape[1]), bool)])
    return np.asarray(np.logical_and.reduceat(padded, between.ravel(), axis=0)[::2])


def confine(
    picture: Picture,
    interest: Interest,
    geometries: Sequence[Geometry],
    grids: Sequence[tuple[int, int]],
) -> Picture:
    """Return a picture whose inputs are blank outside, with the interior of the first of them.

    Args:
        picture: As it was decoded.
        interest: What of it counts.
        geometries: Of its inputs.
        grids: Of patches, of which one at least must be inside.

    Raises:
        ImageError: if no pixel is inside, or no patch of a grid.
    """
    size = picture.width, picture.height
    interiors = [interior_of(interest, geometry, size) for geometry in geometries]
    fault = emptiness(interiors[0], grids)
    if fault:
        raise ImageError("unsupported", fault)
    kept = [np.repeat(one.pixels()[..., np.newaxis], 3, axis=2) for one in interiors]
    keep = kept[0] if len(kept) == 1 else np.concatenate([one.ravel() for one in kept])
    pixels = np.where(keep, picture.pixels, np.uint8(BLANK))
    return replace(picture, pixels=pixels, interior=interiors[0])


def emptiness(interior: Interior, grids: Sequence[tuple[int, int]]) -> str:
    """Return why nothing is left of a picture, in words; "" where something is."""
    height, width = interior.height, interior.width
    count = int(interior.pixels().sum())
    if not count:
        return f"its region of interest holds no pixel of the {width}x{height} that the model sees"
    for rows, columns in grids:
        if not interior.cells((rows, columns)).any():
            return (
                f"its region of interest holds {count} pixels of the {width}x{height} that the "
                f"model sees, and half of no patch of {columns}x{rows}: it is too small or too thin"
            )
    return ""
