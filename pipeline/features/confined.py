"""Features of what is inside a region of interest, also in the places of what is not.

A patch outside gets the features of the nearest patch inside, in each layer and then again in the
embeddings that are made of the layers. So nothing is learned, and nothing compared, but patches
inside: all that a method keeps (rows of a bank, Gaussians, centres, means over an image) is made of
them, and a patch outside is as far from it as its neighbour inside.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchlake.pipeline.maths.interior import Interior

# Axes of a batch of maps: (images, channels, rows, columns).
_MAP_AXES = 4


def confined_maps(maps: Tensor, interiors: Sequence[Interior]) -> Tensor:
    """Return feature maps (images, channels, rows, columns), filled outside.

    Args:
        maps: Of a batch, which may have more images behind those that are meant.
        interiors: Of its first images.
    """
    rows, columns = maps.shape[-2:]
    return _filled(maps.flatten(2), interiors, (rows, columns), 2).reshape(maps.shape)


def confined_embeddings(embedded: Tensor, interiors: Sequence[Interior]) -> Tensor:
    """Return embeddings (images, rows, columns, dim), filled outside; others are as they were."""
    if embedded.ndim != _MAP_AXES:
        return embedded
    rows, columns = embedded.shape[1:3]
    return _filled(embedded.flatten(1, 2), interiors, (rows, columns), 1).reshape(embedded.shape)


def _filled(
    values: Tensor, interiors: Sequence[Interior], grid: tuple[int, int], axis: int
) -> Tensor:
    """Return values of which one axis is the cells of a grid, row by row."""
    filled = values.clone()
    for number, interior in enumerate(interiors):
        if not interior.is_whole:
            # A copy: what is shared is read-only, which torch warns of.
            sources = torch.from_numpy(np.array(interior.sources(grid))).to(values.device)
            filled[number] = values[number].index_select(axis - 1, sources)
    return filled
