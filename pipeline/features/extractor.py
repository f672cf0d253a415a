"""Make embeddings of images, each of which depends on its image alone."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import Backbone
from patchlake.pipeline.features.precision import Precision

# Images that go through the network together on a CPU, by its precision. In float32 several of them
# change bits (with DenseNet-169, 32 at once change features by 1e-6) and save nothing. In bfloat16 an
# image of 224 pixels takes 14.2 ms instead of 15.9 with ResNet-18 and 7.5 instead of 11.1 with
# EfficientNet-Lite0 on a core of a Zen 4; 8 at once are not faster, and keep fewer cores busy.
_AT_ONCE: Mapping[Precision, int] = {"float32": 1, "bfloat16": 4}

# From feature maps (images, channels, rows, columns) of several layers to embeddings by name, whose
# first axis is the images.
Embed = Callable[[Sequence[Tensor]], dict[str, Tensor]]


@dataclass
class Extractor:
    """Embeds images with a backbone, with a result that depends on the image alone.

    On a CPU a few images at a time go through the network, always as many, on one thread, and
    several such batches on several threads; the last batch is filled up with black images. Thus
    neither the batch size nor the number of threads can change a bit, as long as an image's result
    does not depend on its place in a batch, which the tests check. Large batches are no faster:
    their activations leave the cache. On a GPU the batch size is the setting's.
    """

    backbone: Backbone
    embed: Embed
    batch_size: int = 32
    threads: int = 1

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def at_once(self) -> int:
        """Images that go through the network together."""
        on_cpu = self.backbone.device.type == "cpu"
        return _AT_ONCE[self.backbone.precision] if on_cpu else self.batch_size

    def __call__(self, pixels: UInt8[np.ndarray, "images h w 3"]) -> dict[str, np.ndarray]:
        """Return the embeddings by name, with the images as first axis; without images, no arrays.

        Raises:
            ConfigError: if an embedding is not finite.
        """
        if len(pixels) == 0:
            return {}
        size = self.at_once
        batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
        found: dict[str, np.ndarray] = {}
        embedded = self._pool.map(self._embed_batch, batches, [size] * len(batches))
        for number, arrays in enumerate(embedded):
            # Each batch is written to its place. To join the batches in the end would take a second
            # copy, and a fragment may have a gigabyte of embeddings.
            for name, array in arrays.items():
                if name not in found:
                    found[name] = np.empty((len(pixels), *array.shape[1:]), array.dtype)
                found[name][number * size : number * size + len(array)] = array
        return found

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
