"""Make embeddings of images, each of which depends on its image alone."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import Backbone

# From feature maps (images, channels, rows, columns) of several layers to embeddings by name, whose
# first axis is the images.
Embed = Callable[[Sequence[Tensor]], dict[str, Tensor]]


@dataclass
class Extractor:
    """Embeds images with a backbone, with a result that depends on the image alone.

    On a CPU every image goes through the network by itself, on one thread, and several images at a
    time on several threads. Thus neither the batch size nor the number of threads can change a bit:
    with DenseNet-169, a batch of 32 changes features by 1e-6. It is no slower than a batch; one of
    32 is up to 2.8 times slower here, because its activations leave the cache. On a GPU the last
    batch is padded, so that all have the same size.
    """

    backbone: Backbone
    embed: Embed
    batch_size: int = 32
    threads: int = 1

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    def __call__(self, pixels: UInt8[np.ndarray, "images h w 3"]) -> dict[str, np.ndarray]:
        """Return the embeddings by name, with the images as first axis; without images, no arrays.

        Raises:
            ConfigError: if an embedding is not finite.
        """
        if len(pixels) == 0:
            return {}
        size = 1 if self.backbone.device.type == "cpu" else self.batch_size
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
