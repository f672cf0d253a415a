"""Make embeddings of images, each of which depends on its image alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import local

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from patchlake.pipeline.config import TileSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import Backbone
from patchlake.pipeline.features.confined import confined_embeddings, confined_maps
from patchlake.pipeline.features.tiled import Cut, stitched_maps
from patchlake.pipeline.maths.interior import Interior

# On a CPU, pixels that go through the network together in bfloat16: those of 4 images of 224 x 224.
# In float32 several images at once change bits (with DenseNet-169, 32 of them change features by
# 1e-6) and save nothing. In bfloat16 an image of 224 pixels takes 14.2 ms instead of 15.9 with
# ResNet-18, and 7.5 instead of 11.1 with EfficientNet-Lite0, on a core of a Zen 4. More at once are
# not faster, and keep fewer cores busy; of 448 pixels, two already are slower than one.
_PIXELS, _MOST = 4 * 224 * 224, 4

# From feature maps (images, channels, rows, columns) of several layers to embeddings by name, whose
# first axis is the images.
Embed = Callable[[Sequence[Tensor]], dict[str, Tensor]]

# On a GPU, those of 32 such images. With 256 an H200 scored a sixth more of them a second with
# ResNet-18, and no more with WRN-50, in twice the memory.
_GPU_PIXELS = 32 * 224 * 224
# On a GPU, batches that are under way at a time: while one waits for the device, the kernels of
# others are queued. Each takes the device's memory of a batch.
GPU_BATCHES = 2
# Of an image that every network takes: a multiple of 8, 14, 16 and 32.
_SIDE = 224
# Each thread's queue of kernels.
_queues = local()


@dataclass
class Extractor:
    """Embeds images with a backbone, with a result that depends on the image alone.

    On a CPU a few images at a time go through the network, always as many; the last batch is filled
    up with black images. Thus the number of images cannot change a bit, as long as an image's
    result does not depend on its place in a batch, which the tests check. Large batches are no
    faster: their activations leave the cache. On a GPU, batches are larger, and just as fixed:
    another size changes bits there, too.

    Several threads may call it, each with images of its own. The caller sees to it that torch uses
    one thread in each: the last bits of a result depend on their number.
    """

    backbone: Backbone
    embed: Embed
    # How images are cut that are larger; None: they are not.
    tile: TileSettings | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the network is on a CPU."""
        return self.backbone.device.type == "cpu"

    def at_once(self, size: tuple[int, int]) -> int:
        """Return how many images of (height, width) pixels go through the network together."""
        # Of one that is cut, its tiles do.
        return 1 if not self._cut(size).is_whole else self._fitting(size)

    def _fitting(self, size: tuple[int, int]) -> int:
        if not self.on_cpu:
            return gpu_batch(size)
        if self.backbone.precision == "float32":
            return 1
        height, width = size
        return min(_MOST, max(1, _PIXELS // (height * width)))

    def require_fit(self, size: tuple[int, int]) -> None:
        """Let a black image of (height, width) pixels, or its first tile, go through all of it.

        Raises:
            ConfigError: if the network, the tiles and the method do not go together with the size.
        """
        self(np.zeros((1, *self._cut(size).tile, 3), np.uint8))

    def threads(self, offered: int) -> int:
        """Return how many threads should call it at a time, of those that are offered."""
        return offered if self.on_cpu else min(offered, GPU_BATCHES)

    def __call__(
        self, pixels: UInt8[np.ndarray, "images h w 3"], interiors: Sequence[Interior] = ()
    ) -> dict[str, np.ndarray]:
        """Return the embeddings by name, with the images as first axis; without images, no arrays.

        Args:
            pixels: The images.
            interiors: What of each counts (`features.confined`); none where all does.

        Raises:
            ConfigError: if an embedding is not finite.
        """
        size = self.at_once(pixels.shape[1:3])
        with self.own_queue():
            batches = [
                on_host(self._of_batch(some, own, size))
                for some, own in in_pieces(pixels, interiors, size)
            ]
        return joined(batches)

    def of_piece(
        self, pixels: UInt8[np.ndarray, "images h w 3"], interiors: Sequence[Interior] = ()
    ) -> dict[str, Tensor]:
        """Return the embeddings of a few batches of images, at least one, where the network is.

        Arguments are those of a call.

        Raises:
            ConfigError: if an embedding is not finite.
        """
        size = self.at_once(pixels.shape[1:3])
        batches = [
            self._of_batch(some, own, size) for some, own in in_pieces(pixels, interiors, size)
        ]
        if len(batches) == 1:
            return batches[0]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def _of_batch(
        self, pixels: np.ndarray, interiors: Sequence[Interior], size: int
    ) -> dict[str, Tensor]:
        """Return the embeddings of at most `size` images, computed as a batch of that size."""
        # From pinned memory a GPU copies while the processor goes on.
        shape = (size, *pixels.shape[1:])
        padded = torch.zeros(shape, dtype=torch.uint8, pin_memory=not self.on_cpu)
        padded.numpy()[: len(pixels)] = pixels
        with torch.inference_mode():
            maps = self._maps(padded)
            if interiors:
                maps = [confined_maps(one, interiors) for one in maps]
            embedded = self.embed(maps)
            if interiors:
                embedded = {n: confined_embeddings(t, interiors) for n, t in embedded.items()}
            own = {name: tensor[: len(pixels)].contiguous() for name, tensor in embedded.items()}
            # Pixels are finite, so it can only be the weights. Distances would not be numbers.
            if not all(bool(tensor.isfinite().all()) for tensor in own.values()):
                raise ConfigError(
                    "the backbone's features are not finite: its weights are damaged; "
                    "name others with --weights"
                )
        return own

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps of images: uint8 (images, h, w, 3), one where it is cut."""
        height, width = pixels.shape[1:3]
        cut = self._cut((height, width))
        if cut.is_whole:
            return self.backbone.feature_maps(pixels)
        return stitched_maps(self.backbone.feature_maps, pixels, cut, self._fitting(cut.tile))

    def _cut(self, size: tuple[int, int]) -> Cut:
        """Return how images of (height, width) are cut. Raises `ConfigError` if they cannot be."""
        if self.tile is None:
            return Cut(size, size, 0, 1)
        cut = Cut.of(size, self.tile, self._stride)
        if not cut.is_whole:
            cut.require_whole_cells()
        return cut

    @cached_property
    def _stride(self) -> int:
        return stride_of(self.backbone)

    @contextmanager
    def own_queue(self) -> Iterator[None]:
        """Queue a GPU's work beside that of other threads, not behind it, until the block ends."""
        if self.on_cpu:
            yield
            return
        if not hasattr(_queues, "stream"):
            _queues.stream = torch.cuda.Stream(self.backbone.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(_queues.stream):
            yield


def in_pieces(
    pixels: np.ndarray, interiors: Sequence[Interior], size: int
) -> list[tuple[np.ndarray, Sequence[Interior]]]:
    """Return images in pieces of a size, each with what of its images counts, where that is told.

    Args:
        pixels: With the images as first axis.
        interiors: One an image, or none at all.
        size: Images of a piece.
    """
    return [
        (pixels[begin : begin + size], interiors[begin : begin + size])
        for begin in range(0, len(pixels), size)
    ]


def stride_of(backbone: Backbone) -> int:
    """Return of how many pixels of a side a cell of the coarsest layer is, or of how many patches.

    One black image of 224 x 224 pixels goes through the network.
    """
    maps = backbone.feature_maps(torch.zeros((1, _SIDE, _SIDE, 3), dtype=torch.uint8))
    return max(1, _SIDE // min(feature_map.shape[2] for feature_map in maps))


def gpu_batch(size: tuple[int, int]) -> int:
    """Return how many images of (height, width) pixels go through the network together there."""
    height, width = size
    return max(1, _GPU_PIXELS // (height * width))


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays, which share the memory of those that are not on a GPU."""
    arrays = {}
    for name, tensor in tensors.items():
        # To memory that is not pinned, a GPU copies at a tenth of the speed.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        arrays[name] = (host.copy_(tensor) if tensor.is_cuda else tensor).numpy()
    return arrays


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the embeddings of several parts of the images as those of all of them, in order."""
    if len(parts) == 1:
        return dict(parts[0])
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
