"""Exact nearest neighbours among the pixels of chosen images.

SPADE searches for the pixels of each query image in a bank of its own: the feature maps of the
training images that are nearest to the query image. So no search can be built once for all queries.
What can be kept is the work on single images: each is loaded into a slot and projected there
(`pipeline.index.bounds`), so that the next query images find it. Where there are more images than
slots, those that were used last stay.

A block of queries goes through the slots of its images, tile by tile, as through any bank
(`pipeline.index.sieve`): the limit that one image gives rules out most of the next. It ends in
`exact.measured`. So the distances are to the bit those of an `ExactSearch` over the chosen images,
whatever else is in the slots.

Among 50 images at 224 x 224 (benchmarks/spade.py), a search takes 0.25 to 0.3 s with ResNet-18, a
quarter of what the dense product takes, on a processor with VNNI; to load an image takes 10 ms.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.sieve import QUERIES
from patchlake.pipeline.index.slots import Slots
from patchlake.pipeline.index.threads import BlockThreads

# The vectors of one image: a float32 array (pixels, dim) for each layer.
Maps = Sequence[np.ndarray]

# At 224 x 224, the three layers of an image take 2.6 MiB with ResNet-18 and 8.1 MiB with
# DenseNet-169, so that 393 and 127 images fit.
SLOTS_BYTES = 2**30
# Images from which a layer's projection is learned. Any images would give correct bounds.
_SAMPLED_IMAGES = 8

# From a layer, queries, slots and k to the distances.
_SlotSearch = Callable[[Slots, np.ndarray, Sequence[int], int], np.ndarray]


class Galleries:
    """Searches the pixels of any chosen images, for each layer by itself.

    Images are known by number, from 0. Calls from several threads wait for each other.
    """

    def __init__(
        self,
        load: Callable[[int], Maps],
        images: int,
        *,
        is_pruned: bool = True,
        budget: int = SLOTS_BYTES,
        threads: int | None = None,
    ) -> None:
        """Load a few images, and learn the projections from them.

        Args:
            load: Returns the vectors of an image, given its number; several threads call it.
            images: The number of images.
            is_pruned: Whether `nearest` may be called, for which more is kept of each image.
            budget: Bytes that the slots may take; one image always fits.
            threads: Threads of a search; None is as many as torch would use. They change no bit.
        """
        chosen = np.unique(np.linspace(0, images - 1, _SAMPLED_IMAGES).astype(int))
        samples = zip(*(load(number) for number in chosen.tolist()), strict=True)
        self._load = load
        self._layers = [Slots(sample, is_pruned=is_pruned) for sample in samples]
        per_image = sum(layer.image_bytes for layer in self._layers)
        self._capacity = min(images, max(1, budget // per_image))
        for layer in self._layers:
            layer.reserve(self._capacity)
        # Image number -> slot, of the images that are in one; the one used last comes last.
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._lock = Lock()
        self._threads = BlockThreads(threads or torch.get_num_threads())

    def nearest(
        self, queries: Maps, images: Sequence[int], k: int
    ) -> list[Float32[np.ndarray, "_queries _k"]]:
        """Return for each layer the L2 distances to the k nearest pixels of the images.

        A query's distances are in rising order. For a layer it takes O(queries * images * pixels)
        times components, in bytes, or times dim, in floats, where it has to search densely.

        Args:
            queries: Vectors of each layer, at least one, in the units of the images.
            images: The numbers of the images, each once.
            k: Where the images have fewer pixels, the distances to all of them are returned.
        """
        return self._search([_nearest_of(self._threads)] * len(queries), queries, images, k)

    def same_place(
        self, queries: Maps, images: Sequence[int], k: int
    ) -> list[Float32[np.ndarray, "_pixels _k"]]:
        """Return for each layer the k smallest L2 distances between pixels at the same place.

        As `nearest`, but each query meets only the one pixel of each image that has its number.
        """
        return self.near_place(
            queries, images, k, [np.arange(len(one))[:, None] for one in queries]
        )

    def near_place(
        self,
        queries: Maps,
        images: Sequence[int],
        k: int,
        near: Sequence[Int64[np.ndarray, "_pixels _near"]],
    ) -> list[Float32[np.ndarray, "_pixels _k"]]:
        """Return for each layer the k smallest L2 distances between pixels near the same place.

        As `nearest`, but each query meets only some pixels of each image. Where any of a layer
        meets fewer than k in all, as many are returned as it meets.

        Args:
            queries: Vectors of each layer, a query for each pixel.
            images: The numbers of the images, each once.
            k: At least 1.
            near: Of each layer, for each query the numbers of pixels; -1 is none.
        """
        searches = [_near_place(self._threads, one) for one in near]
        found = self._search(searches, queries, images, k)
        fewest = [int((one >= 0).sum(axis=1).min()) * len(images) for one in near]
        return [one[:, :most] for one, most in zip(found, fewest, strict=True)]

    def _search(
        self, searches: Sequence[_SlotSearch], queries: Maps, images: Sequence[int], k: int
    ) -> list[np.ndarray]:
        # As many images at a time as there are slots; the smallest distances of all are kept.
        rounds = []
        with self._lock:
            for begin in range(0, len(images), self._capacity):
                slots = self._load_slots(images[begin : begin + self._capacity])
                by_layer = zip(searches, self._layers, queries, strict=True)
                rounds.append([search(layer, rows, slots, k) for search, layer, rows in by_layer])
        joined = (np.concatenate(of_layer, axis=1) for of_layer in zip(*rounds, strict=True))
        return [np.sort(distances, axis=1)[:, :k] for distances in joined]

    def _load_slots(self, images: Sequence[int]) -> list[int]:
        """Return the slots of the images, loading those that are in none.

        There must not be more images than slots.
        """
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
            # Some slots may not hold what `_slots` says.
            self._slots.clear()
            raise
        return [self._slots[number] for number in images]

    def _fill(self, number: int) -> None:
        slot = self._slots[number]
        for layer, vectors in zip(self._layers, self._load(number), strict=True):
            layer.put(slot, vectors)


def _nearest_of(threads: BlockThreads) -> _SlotSearch:
    """Return the function that searches some slots of a layer, with blocks on these threads."""

    def nearest(layer: Slots, queries: np.ndarray, slots: Sequence[int], k: int) -> np.ndarray:
        k = min(k, len(slots) * layer.pixels)
        search = layer.search(slots, k)
        if search is None:
            return layer.dense(queries, slots, k)
        # Each thread gets as many blocks. Blocks for which the bounds rule out too little are then
        # searched densely, all together.
        count = -(-len(queries) // (threads.count * QUERIES)) * threads.count
        blocks = np.array_split(queries, min(count, len(queries)))
        found = threads.map(search, blocks)
        left = [block for block, near in zip(blocks, found, strict=True) if near is None]
        if left:
            dense = layer.dense(np.concatenate(left), slots, k)
            answers = iter(np.split(dense, np.cumsum([len(block) for block in left])[:-1]))
            found = [next(answers) if near is None else near for near in found]
        return np.concatenate([near for near in found if near is not None])

    return nearest


def _near_place(threads: BlockThreads, near: np.ndarray) -> _SlotSearch:
    """Return the function that compares each pixel with those of some slots that are near it."""

    def nearest(layer: Slots, queries: np.ndarray, slots: Sequence[int], k: int) -> np.ndarray:
        def of_slot(slot: int) -> np.ndarray:
            return np.sort(layer.near_place(queries, slot, near), axis=1)[:, :k]

        distances = np.concatenate(threads.map(of_slot, slots), axis=1)
        return np.sort(distances, axis=1)[:, :k]

    return nearest
