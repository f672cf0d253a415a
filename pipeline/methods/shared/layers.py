"""Scores of images from several layers, each of which is scored by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import GroupDetector, Scores
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.methods.shared.maps import layer_names, mean_on_finest_grid
from patchlake.pipeline.methods.shared.stacked import own_within

Maps = Float32[np.ndarray, "images rows columns"]


@dataclass(frozen=True)
class Layer:
    """A layer's memory bank, one of several that are stacked."""

    # Of embeddings that are named "patches".
    detector: GroupDetector
    # Which rows of all are its own.
    part: slice
    # Its map is divided by this before it is joined with the others.
    scale: float


@dataclass(frozen=True)
class LayersDetector:
    """The layers of a group, the finest first, and how the joined map gives image scores."""

    layers: Sequence[Layer]
    image_scores: Callable[[Maps], Float32[np.ndarray, " _images"]]

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return the mean of the layers' maps on the finest grid, and the image scores of it.

        Raises:
            ValueError: if there are not as many layers as when the group was fitted.
        """
        names = layer_names(embeddings)
        if len(names) != len(self.layers):
            raise ValueError(f"images have {len(names)} layers, the banks {len(self.layers)}")
        pairs = zip(names, self.layers, strict=True)
        by_layer = [_map(layer, embeddings[name], own) for name, layer in pairs]
        maps = [mean_on_finest_grid(grids) for grids in zip(*by_layer, strict=True)]
        joined = np.stack(maps) if maps else by_layer[0].astype(np.float32)
        return Scores(self.image_scores(joined), joined)


def _map(
    layer: Layer, patches: np.ndarray, own: OwnPart | None
) -> Float64[np.ndarray, "images rows columns"]:
    found = layer.detector.score({"patches": patches}, own_within(own, layer.part)).anomaly_maps
    assert found is not None
    return found.astype(np.float64) / layer.scale
