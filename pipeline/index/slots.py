"""Memory for one layer of many images: each slot holds the feature vectors of one image's pixels.

A slot also holds what bounds distances to its pixels from below (`pipeline.index.bounds`), where
those are searched. A "pixel" is a position of the layer's feature map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.bounds import (
    BankCoordinates,
    Projection,
    principal_directions,
)
from patchlake.pipeline.index.exact import ExactSearch, measured
from patchlake.pipeline.index.sieve import TILE, Block

# The bounds use as many principal directions as hold this share of the variance. With 95 % instead
# of 98 %, ResNet-18's first layer takes 1.5 times as long, because more pairs are left, and
# DenseNet-169's 0.8 to 0.9 times.
_VARIANCE = 0.97
# The number of directions is a multiple of the first number, and at most the second.
_STEP, _MOST = 16, 256
# Rows of a dense search at once: 16384 x 1024 x 4 = 64 MiB.
_DENSE_ROWS = 16384
# The largest share of a block's pairs that may be left to be measured: a pair costs 3 ns or more in
# the dense search and 100 ns when it is measured.
_MAX_LEFT = 1 / 50


class Slots:
    """One layer of the images in the slots. Slot s has the rows s * pixels to (s + 1) * pixels."""

    def __init__(self, sample: Sequence[np.ndarray], *, is_pruned: bool) -> None:
        """Learn the projection for the bounds from a few images; there are no slots yet.

        Args:
            sample: The vectors of each image, float32 (pixels, dim).
            is_pruned: Whether `search` may be called, for which more is kept of each image.
        """
        self.pixels: int = sample[0].shape[0]
        dim = sample[0].shape[1]
        rows = np.concatenate(sample)
        self._projection = _projection(rows) if is_pruned else None
        self._vectors = np.empty((0, dim), np.float32)
        # As in the `Coordinates` of a bank, but of the errors only the largest of each slot.
        widths = 0, 0
        if self._projection is not None:
            found = self._projection.of_bank(rows)
            # One byte more for the squared lengths: other images may have larger features.
            widths = found.floats.shape[1], found.bytes.shape[1] + 1
        self._floats = np.empty((0, widths[0]), np.float32)
        self._bytes = np.empty((0, widths[1]), np.int8)
        self._byte_errors = self._float_errors = np.empty(0)

    @property
    def image_bytes(self) -> int:
        """Bytes of memory that one image takes."""
        width: int = 4 * (self._vectors.shape[1] + self._floats.shape[1]) + self._bytes.shape[1]
        return self.pixels * width

    def reserve(self, slots: int) -> None:
        """Make so many empty slots. They take memory only when they are filled."""
        rows = slots * self.pixels
        self._vectors = np.zeros((rows, self._vectors.shape[1]), np.float32)
        self._floats = np.zeros((rows, self._floats.shape[1]), np.float32)
        self._bytes = np.zeros((rows, self._bytes.shape[1]), np.int8)
        self._byte_errors, self._float_errors = np.zeros(slots), np.zeros(slots)

    def put(self, slot: int, vectors: Float32[np.ndarray, "pixels dim"]) -> None:
        """Put an image's vectors into a slot. O(pixels * dim * components)."""
        rows = self._rows(slot)
        self._vectors[rows] = vectors
        if self._projection is None:
            return
        found = self._projection.of_bank(self._vectors[rows])
        count = found.floats.shape[1]
        # Behind the coordinates come the extra bytes for the squared length, the remainder last.
        # Where they are more than fit, the last of those before the remainder are left out, which
        # only makes the bound lower: see `bounds._as_bytes`.
        halves = found.bytes[:, count:-1][:, : self._bytes.shape[1] - count - 1]
        own = self._bytes[rows]
        own[:] = 0
        own[:, :count] = found.bytes[:, :count]
        own[:, count : count + halves.shape[1]] = halves
        own[:, -1] = found.bytes[:, -1]
        self._floats[rows] = found.floats
        self._byte_errors[slot], self._float_errors[slot] = (
            found.byte_error.max(),
            found.float_error.max(),
        )

    def near_place(
        self,
        queries: Float32[np.ndarray, "pixels dim"],
        slot: int,
        near: Int64[np.ndarray, "pixels near"],
    ) -> Float32[np.ndarray, "pixels near"]:
        """Return the L2 distances of each query to the slot's vectors at some pixels.

        O(pixels * near * dim).

        Args:
            queries: The vectors of an image, pixel by pixel.
            slot: Whose vectors they are compared with.
            near: Of each query the numbers of pixels; -1 is none, at an infinite distance.
        """
        own, exact = self._vectors[self._rows(slot)], queries.astype(np.float64)
        distances = np.full(near.shape, np.inf, np.float32)
        for number, pixels in enumerate(near.T):
            some = np.flatnonzero(pixels >= 0)
            difference = exact[some] - own[pixels[some]]
            squared = np.einsum("nd,nd->n", difference, difference)
            distances[some, number] = np.sqrt(squared).astype(np.float32)
        return distances

    def dense(
        self, queries: Float32[np.ndarray, "queries dim"], slots: Sequence[int], k: int
    ) -> Float32[np.ndarray, "queries k"]:
        """Return the L2 distances to the k nearest rows of some slots, the smallest first.

        They are found by dense products. The slots must have at least k rows.
        """
        together = max(1, _DENSE_ROWS // self.pixels)
        found = []
        for begin in range(0, len(slots), together):
            some = [self._vectors[self._rows(slot)] for slot in slots[begin : begin + together]]
            rows = np.concatenate(some)
            found.append(ExactSearch.over(rows).nearest(queries, min(k, len(rows)))[0])
        nearest: np.ndarray = np.sort(np.concatenate(found, axis=1), axis=1)[:, :k]
        return nearest

    def search(self, slots: Sequence[int], k: int) -> "SlotSearch | None":
        """Return the pruned search over some slots, or None where there are no bounds."""
        if self._projection is None:
            return None
        bank = BankCoordinates(
            self._floats,
            self._bytes,
            float(self._byte_errors[list(slots)].max()),
            float(self._float_errors[list(slots)].max()),
        )
        return SlotSearch(self._projection, bank, self._vectors, self._tiles(slots), k)

    def _rows(self, slot: int) -> slice:
        return slice(slot * self.pixels, (slot + 1) * self.pixels)

    def _tiles(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Return ranges of rows, (begin, end), that fit the buffers of a `Block`.

        Neighbouring slots share a range where they fit together. The ranges are in the order of the
        rows: to begin with the nearest images is no faster.
        """
        together = max(1, TILE // self.pixels)
        runs: list[tuple[int, int]] = []
        for slot in sorted(slots):
            if runs and slot == runs[-1][1] and slot - runs[-1][0] < together:
                runs[-1] = runs[-1][0], slot + 1
            else:
                runs.append((slot, slot + 1))
        tiles: list[tuple[int, int]] = []
        for first, last in runs:
            rows = (last - first) * self.pixels
            edges = first * self.pixels + np.linspace(0, rows, -(-rows // TILE) + 1).astype(int)
            tiles += pairwise(edges.tolist())
        return tiles


@dataclass(frozen=True)
class SlotSearch:
    """Searches the rows of some slots for blocks of queries. `tiles` are ranges of rows."""

    projection: Projection
    bank: BankCoordinates
    vectors: Float32[np.ndarray, "rows dim"]
    tiles: Sequence[tuple[int, int]]
    k: int

    def __call__(
        self, queries: Float32[np.ndarray, "queries dim"]
    ) -> Float32[np.ndarray, "queries k"] | None:
        """Return the L2 distances to the k nearest rows, the smallest first.

        None if the bounds leave too many pairs, so that the block is better searched densely.
        """
        block = Block(self.projection, self.bank, self.vectors, queries, self.k)
        rows = sum(end - begin for begin, end in self.tiles)
        many = (_MAX_LEFT * rows + 8 * self.k) * len(queries)
        found, count = [], 0
        for begin, end in self.tiles:
            pairs = block.tile(begin, end, None)
            if pairs is None:
                return None
            found.append(pairs)
            count += len(pairs[0])
            if count > many:
                return None
        query, row, bound = (np.concatenate(column) for column in zip(*found, strict=True))
        near = block.nearest(query, row, bound)
        if near is None:
            return None
        distances, _ = measured(queries, self.vectors, *near, self.k)
        return distances


def _projection(rows: Float32[np.ndarray, "rows dim"]) -> Projection | None:
    """Return the projection for the rows, or None where there are too few dimensions for one.

    Its bounds may rule out too little, and then single blocks of queries go to the dense search.
    With the 1280 channels of DenseNet-169, of whose variance 256 directions hold 95 %, all blocks
    of some images do, and none of others.
    """
    candidates = range(_STEP, min(_MOST + 1, rows.shape[1]), _STEP)
    if not candidates:
        return None
    directions, shares = principal_directions(rows)
    cumulated = np.cumsum(shares)
    enough = (count for count in candidates if cumulated[count - 1] >= _VARIANCE)
    return Projection.onto(rows, directions, next(enough, candidates[-1]))
