"""A short embedding of a whole image, by which nights are compared, whatever the method.

It is the mean of each channel of the backbone's feature maps, projected at random to 32 numbers,
which nearly keeps distances (`maths.projection`): 32 numbers beside each score are little, and the
hundreds of channels that they stand for are not. The projection is the same for all models, so
that the embeddings of one network and one geometry can be compared.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from patchlake.pipeline.maths.projection import gaussian_projection, projected

# Name of the means among the embeddings of a method; no method has one with a blank.
SUMMARY = "whole image"
_WIDTH = 32
_SEED = 0


def summary_of(feature_maps: Sequence[Tensor]) -> Tensor:
    """Return the means of all channels (images, channels), float32.

    Args:
        feature_maps: (images, channels, rows, columns); filled outside of a region of interest, so
            that nothing outside has a say (`features.confined`).
    """
    means = [maps.mean(dim=(-2, -1), dtype=torch.float32) for maps in feature_maps]
    return torch.cat(means, dim=1)


def embedding_of(
    means: Float32[np.ndarray, "images channels"],
) -> Float32[np.ndarray, "images width"]:
    """Return the embeddings: 32 numbers an image, or its means where they are no more than that.

    No bit of one depends on the other images.
    """
    channels = means.shape[1]
    return means if channels <= _WIDTH else projected(means, _projection(channels))


@lru_cache(maxsize=8)
def _projection(channels: int) -> Float32[np.ndarray, "{channels} width"]:
    found = gaussian_projection(channels, _WIDTH, np.random.default_rng(_SEED))
    found.setflags(write=False)
    return found
