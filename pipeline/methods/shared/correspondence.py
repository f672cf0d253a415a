"""SPADE's correspondence: the distances of an image's pixels to those of other images.

Cohen, Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020
(arXiv 2005.02357).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.galleries import Galleries
from patchlake.pipeline.index.positioned import places_near
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.bank import OwnPart, nearest_others
from patchlake.pipeline.methods.shared.contract import Gallery
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.methods.shared.maps import layer_names


@runtime_checkable
class Pixels(Protocol):
    """The pixels of training images that those of an image are compared with."""

    def nearest(
        self, rows: Sequence[np.ndarray], retrieved: Sequence[int], own: OwnPart | None
    ) -> Sequence[Float32[np.ndarray, "_pixels _k"]]:
        """Return, for each layer, one image's L2 distances to its nearest pixels.

        Args:
            rows: Of each layer, the finest first, the pixels' features (pixels, dim), float32.
            retrieved: Numbers of the training images that it is compared with.
            own: What of the model is the image's, which `retrieved` does not hold.
        """


@dataclass(frozen=True)
class RetrievedPixels:
    """Those of the retrieved images, in a gallery."""

    galleries: Galleries
    neighbours: int
    # Of each layer, the numbers of the pixels that each is compared with; None: those at any place.
    near: Sequence[Int64[np.ndarray, "_pixels _near"]] | None

    @classmethod
    def of(
        cls, gallery: Gallery, images: int, neighbours: int, *, radius: int | None
    ) -> "RetrievedPixels":
        """Return the pixels of a gallery of so many images; a few are loaded at once.

        Args:
            gallery: Of the images.
            images: How many.
            neighbours: Of each pixel, whose distances count.
            radius: In pixels of each layer, to both sides of a pixel's own place; None is anywhere.
        """
        galleries = Galleries(partial(_load, gallery), images, is_pruned=radius is None)
        if radius is None:
            return cls(galleries, neighbours, None)
        kept = gallery.of_image(0)
        grids = [kept[name].shape[:2] for name in layer_names(kept)]
        return cls(galleries, neighbours, [places_near(grid, radius) for grid in grids])

    def nearest(
        self,
        rows: Sequence[np.ndarray],
        retrieved: Sequence[int],
        own: OwnPart | None,  # noqa: ARG002 - an image does not retrieve itself
    ) -> Sequence[Float32[np.ndarray, "_pixels _k"]]:
        """Return the distances to the pixels of those retrieved alone."""
        if self.near is None:
            return self.galleries.nearest(rows, retrieved, self.neighbours)
        return self.galleries.near_place(rows, retrieved, self.neighbours, self.near)


@dataclass(frozen=True)
class CoresetPixels:
    """Some of all images, of each layer a coreset."""

    searches: Sequence[Search]
    # The image that each row is of, layer by layer; each layer has a number of rows of its own.
    owners: Sequence[Int64[np.ndarray, " _rows"]]
    neighbours: int

    @classmethod
    def of(cls, state: Arrays, neighbours: int) -> "CoresetPixels":
        """Return the coresets of a stored model."""
        names = layer_names(state)
        searches = [search_over(ExactSearch.over(state[name])) for name in names]
        return cls(searches, [state[f"{name}.images"] for name in names], neighbours)

    def nearest(
        self,
        rows: Sequence[np.ndarray],
        retrieved: Sequence[int],  # noqa: ARG002 - all images are compared with
        own: OwnPart | None,
    ) -> Sequence[Float32[np.ndarray, "_pixels _k"]]:
        """Return the distances to the pixels that were selected of all images but its own."""
        layers = zip(rows, self.searches, self.owners, strict=True)
        return [self._of_layer(queries, search, owners, own) for queries, search, owners in layers]

    def _of_layer(
        self, queries: np.ndarray, search: Search, owners: np.ndarray, own: OwnPart | None
    ) -> Float32[np.ndarray, "pixels k"]:
        if own is not None:
            is_own = np.isin(owners, own.images)
            # A coreset of one image's pixels alone: there is nothing else to compare with.
            own = None if is_own.all() else OwnPart(own.images, np.flatnonzero(is_own))
        return nearest_others(search, queries, self.neighbours, own)[0]


def order_by_overlap(retrieved: Int64[np.ndarray, "images k"]) -> list[int]:
    """Return the images in an order in which each shares many retrieved ones with the next.

    From the first on always to the one that shares most: what one image has brought into memory
    serves the next. Of 50 retrieved, from 757 with room for 64, 18 are loaded anew, and 39 if 180
    images are taken as they come. O(images^2 * k).
    """
    if len(retrieved) == 0:
        return []
    sets = [set(row) for row in retrieved.tolist()]
    left, order = dict.fromkeys(range(1, len(sets))), [0]
    while left:
        last = sets[order[-1]]
        order.append(max(left, key=lambda image: len(last & sets[image])))
        del left[order[-1]]
    return order


def _load(gallery: Gallery, number: int) -> list[Float32[np.ndarray, "_pixels _dim"]]:
    kept = gallery.of_image(number)
    return [
        kept[name].reshape(-1, kept[name].shape[-1]).astype(np.float32)
        for name in layer_names(kept)
    ]
