"""Where the edge of a drawn mask is: ids and classes are sharp, lossy and resized masks are soft.

A pixel of a soft edge lies between ground and defect, beside both; one of an id lies among its
equals, however small its piece is. Time is linear in the pixels; memory, beyond blocks of rows, is
an eighth of the mask.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Of a lossless mask: more levels than classes, or instances, of one image have.
_MANY_LEVELS = 32
# Of the darker pixels of ids, most lie among their equals. Of edges and of ringing, few do.
_AMONG_EQUALS = 0.3
# A lossy mask that is darker holds classes, if anything.
_DARK = 16
# Blocks of JPEG, which differ by this where they are flat.
_BLOCK = 8
_NOISE = 4
# Rows are compared about a megapixel at a time.
_STRIP_PIXELS = 2**20


def edge_of(values: np.ndarray, *, is_lossy: bool) -> float:
    """Return the value above which pixels are defect: 0, or half of what a soft mask has.

    A lossy mask may hold classes, of which the darkest has the edge. It is told from the grey of
    an edge by three by three blocks of one level, where others are black; and it is not told, and
    lost, where it is smaller than these, or darker than a quarter of the brightest. Of colour,
    a JPEG's blocks have twice the side. (With two by two, blobs and stripes of colour had classes
    that nobody drew, at JPEG's qualities up to 4; with three, only noise had.)

    Args:
        values: (height, width); not negative, and finite. 0 is the ground.
        is_lossy: Whether the file's compression is.
    """
    if values.dtype.kind == "b":
        return 0
    top = values.max().item()
    if is_lossy:
        return min(top, _darkest_class(values, top / 4)) / 2 if top > _DARK else 0
    return 0 if _levels(values) <= _MANY_LEVELS or _are_ids(values, top / 2) else top / 2


def _levels(values: np.ndarray) -> int:
    if values.dtype.kind != "u":
        return len(np.unique(values))
    # Without sorting 100 million of them.
    seen = np.zeros(int(values.max()) + 1, bool)
    seen[values] = True
    return int(seen.sum())


def _are_ids(values: np.ndarray, half: float) -> bool:
    """Return whether pixels up to `half` lie among their equals; not of a mask that has none."""
    darker = equal = 0
    for strip in _strips(values):
        here = strip[1:-1, 1:-1]
        is_darker = (here > 0) & (here <= half)
        # A piece of one value, or the inside of one that touches others.
        is_equal = _is_alone(strip) | _is_flat(strip)
        darker += int(is_darker.sum())
        equal += int((is_equal & is_darker).sum())
    return darker > 0 and equal >= _AMONG_EQUALS * darker


def _strips(values: np.ndarray) -> Iterator[np.ndarray]:
    """Return blocks of rows, each with a frame of its neighbours, or of ground, around it."""
    height, width = values.shape
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        end = min(height, top + rows)
        above, below = min(top, 1), min(height - end, 1)
        yield np.pad(values[top - above : end + below], ((1 - above, 1 - below), (1, 1)))


def _is_alone(strip: np.ndarray) -> np.ndarray:
    """Return which pixels have no neighbour, corners counting, of another value but ground."""
    height, width = strip.shape
    here = strip[1:-1, 1:-1]
    found = np.ones(here.shape, bool)
    for y in range(3):
        for x in range(3):
            other = strip[y : height - 2 + y, x : width - 2 + x]
            found &= (other == here) | (other == 0)
    return found


def _is_flat(strip: np.ndarray) -> np.ndarray:
    here, right, below = strip[1:-1, 1:-1], strip[1:-1, 2:], strip[2:, 1:-1]
    # Both ways: along a straight edge soft pixels are equal, too.
    return np.asarray((here == right) & (here == below))


def _darkest_class(values: np.ndarray, lowest: float) -> float:
    """Return the level of the darkest flat area that is brighter than `lowest`; or infinity."""
    height, width = (side // _BLOCK for side in values.shape)
    if min(height, width) < _AREA:
        return np.inf
    blocks = values[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    floor = sliding_window_view(blocks.min(axis=(1, 3)), (_AREA, _AREA)).min(axis=(2, 3))
    ceiling = sliding_window_view(blocks.max(axis=(1, 3)), (_AREA, _AREA)).max(axis=(2, 3))
    # A grey that is everywhere is a ground, whatever it means.
    if not (ceiling <= _DARK).any():
        return np.inf
    is_class = (ceiling.astype(int) - floor <= _NOISE) & (floor > max(lowest, _DARK))
    return float(floor[is_class].min()) if is_class.any() else np.inf


_AREA = 3
