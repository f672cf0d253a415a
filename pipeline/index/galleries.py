"""Exact nearest neighbours among the pixels of chosen images.

In SPADE each query image has a bank of its own, the feature maps of the training images nearest to
it, so that no search can be built once for all. What is kept is the work on single images: each is
decoded and projected (`pipeline.index.bounds`) into a slot, where the next query images find it; of
more images than there are slots, those that were wanted last stay. A block of queries goes through
its own slots tile by tile as through any bank (`pipeline.index.sieve`), the limit found in one
image ruling out most of the next, and ends in `exact.measured`. So the distances are those of
`ExactSearch` over the chosen images, to the bit, whatever else is in the slots.

Among 50 images at 224 x 224 (benchmarks/spade.py), a search takes 0.25 to 0.3 s with ResNet-18, a
quarter of the dense product; to load an image takes 10 ms.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32

from patchlake.pipeline.index.sieve import QUERIES
from patchlake.pipeline.index.slots import Slots
from patchlake.pipeline.index.threads import BlockThreads

# One image's vectors, float32 (pixels, dim) of each layer.
Maps = Sequence[np.ndarray]

# Three layers at 224 x 224 are 2.6 MiB an image of ResNet-18 and 8.1 of DenseNet-169: 393 and 127.
SLOTS_BYTES = 2**30
# Images from which a layer's directions are taken; any would bound correctly.
_SAMPLED_IMAGES = 8

_SlotSearch = Callable[[Slots, np.ndarray, Sequence[int], int], np.ndarray]


class Galleries:
    """Images by number, and searches over the pixels of any of them, layer by layer."""

    def __init__(
        self,
        load: Callable[[int], Maps],
        images: int,
        *,
        is_pruned: bool = True,
        budget: int = SLOTS_BYTES,
        threads: int | None = None,
    ) -> None:
        """Load a few images to learn from.

        Args:
            load: From an image's number to its vectors; several threads call it.
            images: How many there are.
            is_pruned: False if `nearest` will not be called, for which more is kept of an image.
            budget: Bytes that the slots may fill; one image always fits.
            threads: Of a search; None is as many as torch would use. They change no bit.
        """
        chosen = np.unique(np.linspace(0, images - 1, _SAMPLED_IMAGES).astype(int))
        samples = zip(*(load(number) for number in chosen.tolist()), strict=True)
        self._load = load
        self._layers = [Slots(sample, is_pruned=is_pruned) for sample in samples]
        per_image = sum(layer.image_bytes for layer in self._layers)
        self._capacity = min(images, max(1, budget // per_image))
        for layer in self._layers:
            layer.reserve(self._capacity)
        # The slot of each image that is in one, the last wanted last.
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._lock = Lock()
        self._threads = BlockThreads(threads or torch.get_num_threads())

    def nearest(
        self, queries: Maps, images: Sequence[int], k: int
    ) -> list[Float32[np.ndarray, "queries k"]]:
        """Return, for each layer, the L2 distances to the k nearest pixels of the images, rising.

        O(queries * images * pixels) a layer, times components in bytes or dim in floats.

        Args:
            queries: Rows of each layer, at least one, in the units of the images.
            images: Their numbers, each once.
            k: Of fewer pixels in all, every one counts.
        """
        return self._found(_nearest_of(self._threads), queries, images, k)

    def same_place(
        self, queries: Maps, images: Sequence[int], k: int
    ) -> list[Float32[np.ndarray, "pixels k"]]:
        """Return the same, comparing only pixels at the same place: k of one an image."""
        return self._found(partial(_same_place, self._threads), queries, images, k)

    def _found(
        self, search: _SlotSearch, queries: Maps, images: Sequence[int], k: int
    ) -> list[np.ndarray]:
        parts = []
        with self._lock:
            for begin in range(0, len(images), self._capacity):
                slots = self._hold(images[begin : begin + self._capacity])
                asked = zip(self._layers, queries, strict=True)
                parts.append([search(layer, rows, slots, k) for layer, rows in asked])
        joined = (np.concatenate(of_layer, axis=1) for of_layer in zip(*parts, strict=True))
        return [np.sort(distances, axis=1)[:, :k] for distances in joined]

    def _hold(self, images: Sequence[int]) -> list[int]:
        """Return the slots of at most as many images as there are, loading what is in none."""
        absent = [number for number in images if number not in self._slots]
        for number in images:
            if number in self._slots:
                self._slots.move_to_end(number)
        for number in absent:
            is_full = len(self._slots) == self._capacity
            slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
            self._slots[number] = slot
        try:
            self._threads.map(self._fill, absent)
        except BaseException:
            # Some slots hold what they should not.
            self._slots.clear()
            raise
        return [self._slots[number] for number in images]

    def _fill(self, number: int) -> None:
        slot = self._slots[number]
        for layer, vectors in zip(self._layers, self._load(number), strict=True):
            layer.put(slot, vectors)


def _nearest_of(threads: BlockThreads) -> _SlotSearch:
    def nearest(layer: Slots, queries: np.ndarray, slots: Sequence[int], k: int) -> np.ndarray:
        k = min(k, len(slots) * layer.pixels)
        search = layer.search(slots, k)
        if search is None:
            return layer.dense(queries, slots, k)
        # As many for each thread. One that cannot be pruned goes to the dense search as a whole.
        count = -(-len(queries) // (threads.count * QUERIES)) * threads.count
        blocks = np.array_split(queries, min(count, len(queries)))
        found = threads.map(search, blocks)
        left = [block for block, part in zip(blocks, found, strict=True) if part is None]
        if left:
            dense = layer.dense(np.concatenate(left), slots, k)
            parts = iter(np.split(dense, np.cumsum([len(block) for block in left])[:-1]))
            found = [next(parts) if part is None else part for part in found]
        return np.concatenate([part for part in found if part is not None])

    return nearest


def _same_place(
    threads: BlockThreads, layer: Slots, queries: np.ndarray, slots: Sequence[int], k: int
) -> np.ndarray:
    distances = np.stack(threads.map(partial(layer.same_place, queries), slots), axis=1)
    return np.sort(distances, axis=1)[:, :k]
