"""Feature maps of an image that goes through the network in tiles, stitched to those of the whole.

What is behind the network (embeddings, banks, maps, scores, regions) sees one image, whatever was
cut: its feature maps are those of the tiles, joined in the overlaps by `maths.tiling`'s weights. So
memory is that of the maps and of a few tiles, and not of the network's activations of the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchlake.pipeline.config import TileSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.tiling import tile_starts, tile_weights


@dataclass(frozen=True)
class Cut:
    """How an image of one size is cut. `stride` is pixels of a cell of the coarsest layer."""

    # (height, width), pixels.
    image: tuple[int, int]
    tile: tuple[int, int]
    overlap: int
    stride: int

    @classmethod
    def of(cls, image: tuple[int, int], settings: TileSettings, stride: int) -> "Cut":
        """Return the cut of an image; a side that is no longer than a tile is not cut."""
        tile = min(settings.size, image[0]), min(settings.size, image[1])
        return cls(image, tile, settings.overlap, stride)

    @property
    def is_whole(self) -> bool:
        """Whether the image is its only tile."""
        return self.tile == self.image

    def require_whole_cells(self) -> None:
        """Raise `ConfigError` unless all lengths are whole cells of the network's coarsest layer.

        Else the cells of two tiles would not lie on one another.
        """
        for name, value in (
            ("image.tile.size", max(self.tile)),
            ("image.tile.overlap", self.overlap),
            ("a side of the inputs (image.resize)", self.image[0]),
            ("a side of the inputs (image.resize)", self.image[1]),
        ):
            if value % self.stride:
                below = value // self.stride * self.stride
                raise ConfigError(
                    f"{name} is {value} pixels, and a cell of the coarsest of backbone.layers is "
                    f"{self.stride}: tiles are cut at whole cells; {below} or "
                    f"{below + self.stride} would do"
                )

    def axis(self, number: int) -> tuple[int, int, int]:
        """Return length, size and overlap of an axis (0: down, 1: across), in coarsest cells."""
        length, size = self.image[number], self.tile[number]
        overlap = self.overlap if size < length else 0
        return length // self.stride, size // self.stride, overlap // self.stride

    def places(self) -> list[tuple[int, int]]:
        """Return the numbers (down, across) of all tiles, row by row."""
        down, across = (len(tile_starts(*self.axis(number))) for number in range(2))
        return [(y, x) for y in range(down) for x in range(across)]


def stitched_maps(
    feature_maps: Callable[[Tensor], list[Tensor]], image: Tensor, cut: Cut, at_once: int
) -> list[Tensor]:
    """Return the feature maps of an image, of tiles that are stitched.

    Args:
        feature_maps: Those of a batch: `Backbone.feature_maps`.
        image: uint8 (1, h, w, 3) on the host.
        cut: Of its size.
        at_once: Tiles that go through the network together; the last ones are filled up with black.
    """
    starts = [tile_starts(*cut.axis(number)) for number in range(2)]
    places = cut.places()
    wholes: list[Tensor] = []
    for begin in range(0, len(places), at_once):
        some = places[begin : begin + at_once]
        tiles = torch.zeros((at_once, *cut.tile, 3), dtype=torch.uint8)
        for tile, place in zip(tiles, some, strict=False):
            top, left = (cut.stride * starts[axis][number] for axis, number in enumerate(place))
            tile.copy_(image[0, top : top + cut.tile[0], left : left + cut.tile[1]])
        maps = feature_maps(tiles)
        wholes = wholes or [_empty(one, cut) for one in maps]
        for whole, found in zip(wholes, maps, strict=True):
            for one, place in zip(found, some, strict=False):
                _add(whole, one, place, cut)
    return wholes


def _empty(maps: Tensor, cut: Cut) -> Tensor:
    """Return a map of the whole image, of a layer of which tiles have these maps."""
    rows, columns = (maps.shape[2 + axis] * cut.image[axis] // cut.tile[axis] for axis in range(2))
    return maps.new_zeros((1, maps.shape[1], rows, columns))


def _add(whole: Tensor, tile: Tensor, place: tuple[int, int], cut: Cut) -> None:
    """Add a tile's map to its image's, by its weights."""
    weights, slices = [], []
    for axis, number in enumerate(place):
        length, size, overlap = cut.axis(axis)
        cells = tile.shape[1 + axis] // size
        own = torch.tensor(tile_weights(length, size, overlap, cells)[number])
        weights.append(own.to(tile))
        begin = tile_starts(length, size, overlap)[number] * cells
        slices.append(slice(begin, begin + size * cells))
    weighted = tile * weights[0][:, None] * weights[1]
    whole[0, :, slices[0], slices[1]] += weighted
