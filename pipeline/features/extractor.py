"""Make embeddings of images, each of which depends on its image alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import Backbone

# On a CPU, pixels that go through the network together in bfloat16: those of 4 images of 224 x 224.
# In float32 several images at once change bits (with DenseNet-169, 32 of them change features by
# 1e-6) and save nothing. In bfloat16 an image of 224 pixels takes 14.2 ms instead of 15.9 with
# ResNet-18, and 7.5 instead of 11.1 with EfficientNet-Lite0, on a core of a Zen 4. More at once are
# not faster, and keep fewer cores busy; of 448 pixels, two already are slower than one.
_PIXELS, _MOST = 4 * 224 * 224, 4

# From feature maps (images, channels, rows, columns) of several layers to embeddings by name, whose
# first axis is the images.
Embed = Callable[[Sequence[Tensor]], dict[str, Tensor]]


@dataclass
class Extractor:
    """Embeds images with a backbone, with a result that depends on the image alone.

    On a CPU a few images at a time go through the network, always as many; the last batch is filled
    up with black images. Thus the number of images cannot change a bit, as long as an image's
    result does not depend on its place in a batch, which the tests check. Large batches are no
    faster: their activations leave the cache. On a GPU the batch size is the setting's.

    Several threads may call it, each with images of its own. The caller sees to it that torch uses
    one thread in each: the last bits of a result depend on their number.
    """

    backbone: Backbone
    embed: Embed
    batch_size: int = 32

    @property
    def on_cpu(self) -> bool:
        """Whether the network is on a CPU."""
        return self.backbone.device.type == "cpu"

    def at_once(self, size: tuple[int, int]) -> int:
        """Return how many images of (height, width) pixels go through the network together."""
        if not self.on_cpu:
            return self.batch_size
        if self.backbone.precision == "float32":
            return 1
        height, width = size
        return min(_MOST, max(1, _PIXELS // (height * width)))

    def __call__(self, pixels: UInt8[np.ndarray, "images h w 3"]) -> dict[str, np.ndarray]:
        """Return the embeddings by name, with the images as first axis; without images, no arrays.

        Raises:
            ConfigError: if an embedding is not finite.
        """
        size = self.at_once(pixels.shape[1:3])
        batches = [
            self._embed_batch(pixels[begin : begin + size], size)
            for begin in range(0, len(pixels), size)
        ]
        return joined(batches)

    def _embed_batch(self, pixels: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """Return the embeddings of at most `size` images, computed as a batch of that size."""
        padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        with torch.inference_mode():
            embedded = self.embed(self.backbone.feature_maps(torch.from_numpy(padded)))
            own = {name: tensor[: len(pixels)].contiguous() for name, tensor in embedded.items()}
            # Pixels are finite, so it can only be the weights. Distances would not be numbers.
            if not all(bool(tensor.isfinite().all()) for tensor in own.values()):
                raise ConfigError(
                    "the backbone's features are not finite: its weights are damaged; "
                    "name others with --weights"
                )
            return {name: tensor.cpu().numpy() for name, tensor in own.items()}


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the embeddings of several parts of the images as those of all of them, in order."""
    if len(parts) == 1:
        return dict(parts[0])
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
