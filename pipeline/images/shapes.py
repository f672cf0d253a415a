"""The shape of a group's inputs where `image.resize` is `auto`: that of the group's own photos.

A square of a photo of 500 x 1240 pixels keeps two fifths as much of the detail along one side as
along the other. One group has one shape, since maps and positions are compared image by image. A
photo of another shape is resized to it all the same, as to any pair of `image.resize`.
"""

import math
from collections.abc import Sequence
from itertools import product

# Photos whose aspect ratio differs from the inputs' by more than this factor are told of.
ALIKE = 1.25


def own_shape(sizes: Sequence[tuple[int, int]], pixels: int, stride: int) -> tuple[int, int]:
    """Return (height, width) of inputs that have the shape of most of these photos.

    The aspect ratio is the photos' median. The area is their median area, since larger inputs would
    show nothing more, or `pixels`, whichever is smaller. Both sides are multiples of `stride`: one
    of them is next to the exact side, and the other is, too, or is as long as `pixels` allow beside
    it. Of such pairs it is the one whose sides are nearest to the exact ones by ratio (on a tie the
    larger one). No side is shorter than `stride`; where `pixels` are less than a square of it, the
    input is that square.

    Args:
        sizes: (width, height) of photos, upright, pixels; one at least.
        pixels: At most in the result.
        stride: Pixels of a side that one cell of the coarsest layer stands for.
    """
    ratio = _median([width / height for width, height in sizes])
    area = min(_median([float(width * height) for width, height in sizes]), float(pixels))
    most = max(1, pixels // stride**2)
    # In cells of the coarsest layer.
    exact = math.sqrt(area / ratio) / stride, math.sqrt(area * ratio) / stride
    pairs = set()
    for down, across in product(_around(exact[0], most), _around(exact[1], most)):
        pairs |= {(down, min(across, most // down)), (min(down, most // across), across)}
    rows, columns = min(pairs, key=lambda pair: (_distance(pair, exact), -math.prod(pair), pair))
    return rows * stride, columns * stride


def differing(sizes: Sequence[tuple[int, int]], shape: tuple[int, int]) -> int:
    """Return how many photos have an aspect ratio that differs from a shape's by `ALIKE` or more.

    Args:
        sizes: (width, height) of photos.
        shape: (height, width) of the inputs.
    """
    ratio = shape[1] / shape[0]
    return sum(max(w / h / ratio, ratio * h / w) >= ALIKE for w, h in sizes)


def _around(side: float, most: int) -> set[int]:
    return {min(max(1, cells), most) for cells in (math.floor(side), math.ceil(side))}


def _distance(pair: Sequence[int], exact: Sequence[float]) -> float:
    # Rounded, so that what differs by the last bits of a logarithm is a tie everywhere.
    return round(math.hypot(*(math.log(a / b) for a, b in zip(pair, exact, strict=True))), 9)


def _median(values: Sequence[float]) -> float:
    """Return the lower median: of two cameras it is one, and not what lies between them."""
    return sorted(values)[(len(values) - 1) // 2]
