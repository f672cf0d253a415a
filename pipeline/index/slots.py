"""Places in memory for images, one layer of them: their pixels, and lower bounds on distances."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.index.bounds import (
    Coordinates,
    Projection,
    principal_directions,
    products_are_exact,
)
from patchlake.pipeline.index.exact import ExactSearch, measured
from patchlake.pipeline.index.sieve import TILE, Block

# As many directions as hold this share of the variance. The first layer of ResNet-18 takes 1.5
# times as long with 95 % as with 98 % (more pairs are left), DenseNet-169's 0.8 to 0.9 times.
_VARIANCE = 0.97
_STEP, _MOST = 16, 256
# Rows of a dense search at once: 16384 x 1024 x 4 = 64 MiB.
_DENSE_ROWS = 16384
# Of a block's pairs: one costs 3 ns or more in the dense search and 100 ns when it is measured.
_MANY = 1 / 50


class Slots:
    """One layer of the images in the slots: slot s has rows s * pixels to (s + 1) * pixels."""

    def __init__(self, sample: Sequence[np.ndarray], *, is_pruned: bool) -> None:
        """Learn from a few images what bounds need; there are no slots yet.

        Args:
            sample: float32 (pixels, dim) of each.
            is_pruned: False if there will be no `search`, for which more is kept of an image.
        """
        self.pixels: int = sample[0].shape[0]
        dim = sample[0].shape[1]
        rows = np.concatenate(sample)
        self._projection = _projection(rows) if is_pruned else None
        self._vectors = np.empty((0, dim), np.float32)
        # As in the `Coordinates` of a bank; errors and drifts are the largest of each slot.
        widths = 0, 0
        if self._projection is not None:
            found = self._projection.of_bank(rows)
            # One more byte for squared lengths, of images whose features are larger.
            widths = found.exact.shape[1], found.bytes.shape[1] + 1
        self._exact = np.empty((0, widths[0]), np.float32)
        self._bytes = np.empty((0, widths[1]), np.int8)
        self._errors = self._drifts = np.empty(0)

    @property
    def image_bytes(self) -> int:
        """Memory of one image."""
        width: int = 4 * (self._vectors.shape[1] + self._exact.shape[1]) + self._bytes.shape[1]
        return self.pixels * width

    def reserve(self, slots: int) -> None:
        """Make slots, with nothing in them; they take memory as they fill."""
        rows = slots * self.pixels
        self._vectors = np.zeros((rows, self._vectors.shape[1]), np.float32)
        self._exact = np.zeros((rows, self._exact.shape[1]), np.float32)
        self._bytes = np.zeros((rows, self._bytes.shape[1]), np.int8)
        self._errors, self._drifts = np.zeros(slots), np.zeros(slots)

    def put(self, slot: int, vectors: Float32[np.ndarray, "pixels dim"]) -> None:
        """Fill a slot. O(pixels * dim * components)."""
        rows = self._rows(slot)
        self._vectors[rows] = vectors
        if self._projection is None:
            return
        found = self._projection.of_bank(self._vectors[rows])
        count = found.exact.shape[1]
        # Behind the coordinates is half the squared length, in bytes that are added up, and what is
        # left of it. Of bytes that do not fit, the bound is lower than it could be.
        halves = found.bytes[:, count:-1][:, : self._bytes.shape[1] - count - 1]
        own = self._bytes[rows]
        own[:] = 0
        own[:, :count] = found.bytes[:, :count]
        own[:, count : count + halves.shape[1]] = halves
        own[:, -1] = found.bytes[:, -1]
        self._exact[rows] = found.exact
        self._errors[slot], self._drifts[slot] = found.error.max(), found.drift.max()

    def same_place(
        self, queries: Float32[np.ndarray, "pixels dim"], slot: int
    ) -> Float32[np.ndarray, " pixels"]:
        """Return each query's L2 distance to the row of its own number."""
        difference = queries.astype(np.float64) - self._vectors[self._rows(slot)]
        squared = np.einsum("nd,nd->n", difference, difference)
        distances: np.ndarray = np.sqrt(squared).astype(np.float32)
        return distances

    def dense(
        self, queries: Float32[np.ndarray, "queries dim"], slots: Sequence[int], k: int
    ) -> Float32[np.ndarray, "queries k"]:
        """Return L2 distances to the k nearest rows of some slots, of at least k rows, rising."""
        together = max(1, _DENSE_ROWS // self.pixels)
        parts = []
        for begin in range(0, len(slots), together):
            some = [self._vectors[self._rows(slot)] for slot in slots[begin : begin + together]]
            rows = np.concatenate(some)
            parts.append(ExactSearch.over(rows).nearest(queries, min(k, len(rows)))[0])
        nearest: np.ndarray = np.sort(np.concatenate(parts, axis=1), axis=1)[:, :k]
        return nearest

    def search(self, slots: Sequence[int], k: int) -> "SlotSearch | None":
        """Return the pruned search over some slots, or None where there are no bounds."""
        if self._projection is None:
            return None
        # Of a bank's errors the sieve uses the largest, and of its squares none.
        bank = Coordinates(
            self._exact,
            self._bytes,
            np.empty(0, np.int32),
            self._errors[list(slots)],
            self._drifts[list(slots)],
        )
        return SlotSearch(self._projection, bank, self._vectors, self._tiles(slots), k)

    def _rows(self, slot: int) -> slice:
        return slice(slot * self.pixels, (slot + 1) * self.pixels)

    def _tiles(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Return ranges of rows that fit the sieve's buffers, neighbouring slots in one.

        Their order is that of the rows: the nearest image first is no faster.
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
    """Takes blocks of queries through tiles of the slots' rows."""

    projection: Projection
    bank: Coordinates
    vectors: Float32[np.ndarray, "rows dim"]
    tiles: Sequence[tuple[int, int]]
    k: int

    def __call__(
        self, queries: Float32[np.ndarray, "queries dim"]
    ) -> Float32[np.ndarray, "queries k"] | None:
        """Return the k smallest distances of each query; None if too many pairs are left."""
        block = Block(self.projection, self.bank, self.vectors, queries, self.k)
        rows = sum(end - begin for begin, end in self.tiles)
        many = (_MANY * rows + 8 * self.k) * len(queries)
        found, count = [], 0
        for begin, end in self.tiles:
            pairs = block.tile(begin, end, None)
            if pairs is None:
                return None
            found.append(pairs)
            count += len(pairs[0])
            if count > many:
                return None
        query, row, bound = (np.concatenate(parts) for parts in zip(*found, strict=True))
        near = block.nearest(query, row, bound)
        if near is None:
            return None
        distances, _ = measured(queries, self.vectors, *near, self.k)
        return distances


def _projection(rows: Float32[np.ndarray, "rows dim"]) -> Projection | None:
    """Return the projection for the rows, or None where bounds by products of bytes cannot be.

    Where it prunes too little, blocks of queries go to the dense search one by one: of the 1280
    channels of DenseNet-169, of which 256 directions hold 95 % of the variance, all of some images
    and none of others.
    """
    candidates = range(_STEP, min(_MOST + 1, rows.shape[1]), _STEP)
    if not candidates or not products_are_exact():
        return None
    directions, shares = principal_directions(rows)
    held = np.cumsum(shares)
    enough = (count for count in candidates if held[count - 1] >= _VARIANCE)
    return Projection.onto(rows, directions, next(enough, candidates[-1]))
