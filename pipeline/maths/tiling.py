"""Where the tiles of an image lie, and how much each of them says of a place: one axis at a time.

A network sees a large image in tiles that overlap. In an overlap the features of the tiles are
joined by weights that sum to one, so that what tiles agree on stays what it is. Weights are zero in
the outermost three eighths of an overlap, where a tile's features are those of a picture that ends
there (the network pads it with zeros), and rise evenly over the middle quarter. At the borders of
the image there is no ramp. Both axes are independent: a tile's weight is the product of its two.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where tiles begin that cover an axis: as few as overlap enough, evenly spread.

    All are in the same unit, of which starts are whole numbers. Neighbours overlap by `overlap` or
    more, the first tile begins at 0, and the last ends at `length`.

    Args:
        length: Of the axis; at least `size`.
        size: Of a tile.
        overlap: Of two neighbours, at least; from 0 to `size` - 1.

    Raises:
        ValueError: if a tile is longer than the axis, or no longer than its overlap.
    """
    if not 0 <= overlap < size <= length:
        msg = f"tiles of {size} that overlap by {overlap} do not cover an axis of {length}"
        raise ValueError(msg)
    steps = -(-(length - size) // (size - overlap))
    # Whole numbers, rounded down: two neighbours are no farther apart than the rounded-up share.
    return [step * (length - size) // max(1, steps) for step in range(steps + 1)]


@lru_cache(maxsize=64)
def tile_weights(
    length: int, size: int, overlap: int, cells: int
) -> Float64[np.ndarray, "tiles size_in_cells"]:
    """Return the weight of each tile at each of its cells; over the tiles of a cell they sum to 1.

    Args:
        length: As for `tile_starts`, as are the next two.
        size: Of a tile.
        overlap: Of two neighbours.
        cells: Of a unit of length: a layer has so many where the coarsest has one.

    Returns:
        An array that is shared and read-only.
    """
    starts = tile_starts(length, size, overlap)
    centres = (np.arange(size * cells) + 0.5) / cells
    raw = np.ones((len(starts), size * cells))
    for tile, start in enumerate(starts):
        if tile > 0:
            raw[tile] *= _ramp(centres, starts[tile - 1] + size - start)
        if tile + 1 < len(starts):
            raw[tile] *= _ramp(size - centres, start + size - starts[tile + 1])
    total = np.zeros(length * cells)
    for tile, start in enumerate(starts):
        total[start * cells : (start + size) * cells] += raw[tile]
    for tile, start in enumerate(starts):
        raw[tile] /= total[start * cells : (start + size) * cells]
    raw.setflags(write=False)
    return raw


def _ramp(inwards: Float64[np.ndarray, " cells"], overlap: int) -> Float64[np.ndarray, " cells"]:
    """Return weights by the distance from a tile's end: 0 in 3/8 of the overlap, 1 from 5/8 on."""
    if not overlap:
        return np.ones_like(inwards)
    return np.clip(4 * inwards / overlap - 1.5, 0, 1)
