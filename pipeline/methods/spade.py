"""SPADE: distance of each pixel's features to the nearest ones in similar normal images.

Cohen, Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020
(arXiv 2005.02357).

Retrieval: the K training images whose pooled features are nearest; the image score is the mean of
their squared L2 distances. Correspondence: at each layer, each pixel's mean L2 distance to the
kappa nearest pixels, at any place, of those K images; the map is the mean over the layers.

Deliberate differences from the paper and its implementations:

* layers are brought bilinearly to the finest grid and averaged there; the map goes to the image
  from there, bilinearly and smoothed as all maps are. The implementations upsample each layer to
  the image at once;
* every pixel of the retrieved images is compared. byungjae89's implementation drops the last of
  each layer, up to 99;
* features in the gallery are rounded to float16, unless `gallery_dtype` says otherwise;
* where the backbone's last stage is not among `backbone.layers`, the last that is named is pooled;
* `gallery: same_location` compares pixels at the same place only, as ind_knn_ad does; it adds the
  layers up, here the mean is taken of them as well;
* `gallery: coreset` compares the pixels of all images with one greedy coreset of all training
  pixels for each layer. It is of no paper.

A search is 2 K P^2 dim operations a layer of P pixels: for K = 50 at 224 x 224, 72 GFLOP with
ResNet-18 and 287 with WideResNet-50, of which `pipeline.index.galleries` does a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.patches import pooled
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.galleries import Galleries
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.maths.resampling import bilinear_matrix
from patchlake.pipeline.methods.shared.contract import (
    Arrays,
    Corpus,
    Earlier,
    Fitted,
    Gallery,
    MemoryBank,
    Model,
    Progress,
    Scores,
    closed_up,
)
from patchlake.pipeline.methods.shared.selection import Selector, gather_rows

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class SPADE:
    """The settings under `method`."""

    # The pyramid, and behind it the layer that is pooled.
    layers: ClassVar[Layers] = (1, 2, 3, 4)
    # Each is as dear as scoring an image.
    calibration_images: ClassVar[int] = 40
    approximable: ClassVar[bool] = True
    leaves_by_embedding: ClassVar[bool] = False

    # K of the paper.
    retrieved: Annotated[int, Field(ge=1)] = 50
    # kappa of the paper.
    neighbours: Annotated[int, Field(ge=1)] = 1
    # Of `backbone.layers`, so many of the first (or as many as there are) have their pixels
    # compared; the last is pooled.
    pixel_layers: Annotated[int, Field(ge=1)] = 3
    gallery: Literal["neighbours", "same_location", "coreset"] = "neighbours"
    gallery_dtype: Dtype = "float16"
    # Of gallery=coreset: the share of each layer's training pixels (layer1 has four times as many
    # as PatchCore's patches), and what caps it.
    coreset_fraction: Annotated[float, Field(gt=0, le=1)] = 0.001
    max_bank_rows: Annotated[int, Field(ge=1)] = 100_000

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the pooled last layer (images, channels), and maps (images, y, x, channels)."""
        embedded = {
            f"layer{number}": maps.permute(0, 2, 3, 1)
            for number, maps in enumerate(feature_maps[: self.pixel_layers])
        }
        return embedded | {"pooled": pooled(feature_maps[-1])}

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> Fitted:
        """Return the pooled features of all images as the bank, and their maps as the gallery.

        Nothing is computed but for gallery=coreset: O(pixels * coreset * dim) a layer at worst.
        """
        return self._fitted(corpus, None, seed, progress)

    def update(
        self, earlier: Earlier, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> Fitted:
        """Return the bank with the features of the corpus, whose maps join the gallery.

        Of gallery=coreset each layer's greedy selection goes on from the rows that there are.
        """
        return self._fitted(corpus, earlier, seed, progress)

    def withdraw(
        self,
        earlier: Earlier,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - a row of the bank is an image
        *,
        seed: int,  # noqa: ARG002
    ) -> Fitted:
        """Return bank and coresets without the images; the gallery loses them as well."""
        assert earlier.bank is not None
        bank = earlier.bank.without(images)
        facts = dict(earlier.facts) | {"bank_rows": float(len(bank.rows))}
        state: Arrays = {}
        for name in _layers(earlier.state):
            owners = earlier.state[f"{name}.images"]
            stays = ~np.isin(owners, images)
            if not stays.any():
                raise ConfigError(f"without these images the coreset of {name} is empty; fit again")
            state[name] = earlier.state[name][stays]
            state[f"{name}.images"] = closed_up(owners[stays], images)
        # What is left of the gallery's bytes, and of the pixels that an image is compared with.
        left = len(bank.rows) / earlier.images
        compared = min(self.retrieved, len(bank.rows)) / min(self.retrieved, earlier.images)
        if state:
            left = sum(array.nbytes for array in state.values()) / float(facts["gallery_bytes"])
            compared = left
        facts["gallery_bytes"] = float(facts["gallery_bytes"]) * left
        if "gflop_per_image" in facts:
            facts["gflop_per_image"] = float(facts["gflop_per_image"]) * compared
        return Fitted(facts, state, bank)

    def _fitted(
        self, corpus: Corpus, earlier: Earlier | None, seed: int, progress: Progress | None
    ) -> Fitted:
        bank = MemoryBank.of_images(corpus, "pooled")
        if earlier is not None:
            assert earlier.bank is not None
            bank = earlier.bank.joined(bank, earlier.images)
        facts: dict[str, float | str] = {"bank_rows": float(len(bank.rows))}
        if self.gallery == "coreset":
            state = self._coresets(corpus, earlier, seed, progress)
            facts["gallery_bytes"] = float(sum(array.nbytes for array in state.values()))
            facts["gflop_per_image"] = sum(
                _gflop(corpus.shapes[name], len(state[name])) for name in _layers(corpus.shapes)
            )
            return Fitted(facts, state, bank)
        shapes = [corpus.shapes[name] for name in _layers(corpus.shapes)]
        values = len(bank.rows) * sum(int(np.prod(shape)) for shape in shapes)
        facts["gallery_bytes"] = float(values * np.dtype(self.gallery_dtype).itemsize)
        if self.gallery == "neighbours":
            images = min(self.retrieved, len(bank.rows))
            facts["gflop_per_image"] = sum(
                _gflop((y, x, dim), images * y * x) for y, x, dim in shapes
            )
        return Fitted(facts, bank=bank, gallery=partial(_kept, dtype=self.gallery_dtype))

    def prepare(self, model: Model) -> Model:
        """Return the model with its searches among pixels; they hold a gigabyte at most."""
        assert model.search is not None
        if model.gallery is None:
            layers = _layers(model.state)
            searches = {name: search_over(ExactSearch.over(model.state[name])) for name in layers}
            return replace(model, searches=searches)
        load = partial(_load, model.gallery)
        is_pruned = self.gallery == "neighbours"
        return replace(model, pixels=Galleries(load, model.search.size, is_pruned=is_pruned))

    def score(
        self,
        embeddings: Arrays,
        model: Model,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Scores:
        """Return the mean squared distance of the images retrieved, and the distances of pixels.

        Of fewer training images than `retrieved`, all count; of fewer pixels than `neighbours`
        too. A training image (`ignore` is its bank row, and its number) retrieves others only.
        """
        assert model.search is not None
        left = model.search.size - (0 if ignore is None else len(ignore))
        distances, retrieved = model.search.nearest(
            embeddings["pooled"], min(self.retrieved, left), ignore=ignore
        )
        image_scores = np.square(distances, dtype=np.float64).mean(axis=1).astype(np.float32)
        maps: dict[int, np.ndarray] = {}
        for image in chained(retrieved):
            layers = [embeddings[name][image] for name in _layers(embeddings)]
            rows = [np.ascontiguousarray(layer.reshape(-1, layer.shape[-1])) for layer in layers]
            found = self._nearest(rows, retrieved[image].tolist(), model, ignore)
            means = [one.mean(axis=1, dtype=np.float64) for one in found]
            maps[image] = joined(
                [one.reshape(layer.shape[:2]) for one, layer in zip(means, layers, strict=True)]
            )
        grid = embeddings["layer0"].shape[1:3]
        in_order = [maps[image] for image in range(len(retrieved))]
        return Scores(
            image_scores, np.stack(in_order) if maps else np.empty((0, *grid), np.float32)
        )

    def _nearest(
        self,
        rows: Sequence[np.ndarray],
        retrieved: Sequence[int],
        model: Model,
        ignore: np.ndarray | None,
    ) -> list[Float32[np.ndarray, "pixels k"]]:
        """Return, for each layer, one image's distances to its nearest pixels."""
        if self.gallery == "coreset":
            return [
                _nearest_in_coreset(own, model, f"layer{number}", self.neighbours, ignore)
                for number, own in enumerate(rows)
            ]
        assert model.pixels is not None
        if self.gallery == "same_location":
            return model.pixels.same_place(rows, retrieved, self.neighbours)
        return model.pixels.nearest(rows, retrieved, self.neighbours)

    def _coresets(
        self, corpus: Corpus, earlier: Earlier | None, seed: int, progress: Progress | None
    ) -> Arrays:
        """Return each layer's coreset by the layer's name, and the images that its rows are of."""
        state: Arrays = {}
        names = _layers(corpus.shapes)
        before = 0 if earlier is None else earlier.images
        for done, name in enumerate(names, 1):
            height, width, _ = corpus.shapes[name]
            pixels = (before + corpus.images) * height * width
            size = min(max(1, int(pixels * self.coreset_fraction)), self.max_bank_rows)
            selector = Selector("auto", None, seed, name)
            if earlier is None:
                chosen = selector.select(corpus, size).indices
            else:
                given = earlier.state[name]
                more = max(0, size - len(given))
                chosen = selector.extend(corpus, given, more).indices
            rows, owners = gather_rows(corpus, chosen, name), chosen // (height * width) + before
            if earlier is not None:
                rows = np.concatenate([given, rows])
                owners = np.concatenate([earlier.state[f"{name}.images"], owners])
            state[name], state[f"{name}.images"] = rows, owners
            if progress is not None:
                progress(done, len(names))
        return state


def chained(retrieved: Int64[np.ndarray, "images k"]) -> list[int]:
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


def joined(grids: Sequence[np.ndarray]) -> Float32[np.ndarray, "rows columns"]:
    """Return the mean of float64 maps (y, x) on the finest of their grids, bilinearly."""
    rows, columns = max((grid.shape for grid in grids), key=lambda shape: shape[0] * shape[1])
    total = np.zeros((rows, columns))
    for grid in grids:
        # Without BLAS, whose last bits can depend on the number of threads.
        tall = np.einsum("yr,rc->yc", bilinear_matrix(rows, grid.shape[0]), grid)
        total += np.einsum("yc,xc->yx", tall, bilinear_matrix(columns, grid.shape[1]))
    mean: np.ndarray = (total / len(grids)).astype(np.float32)
    return mean


def _nearest_in_coreset(
    rows: np.ndarray, model: Model, name: str, k: int, ignore: np.ndarray | None
) -> Float32[np.ndarray, "pixels k"]:
    search: Search = model.searches[name]
    own = None
    if ignore is not None:
        own = np.flatnonzero(np.isin(model.state[f"{name}.images"], ignore))
        # A coreset of one image's pixels alone: there is nothing else to compare with.
        own = None if len(own) in {0, search.size} else own
    left = search.size - (0 if own is None else len(own))
    return search.nearest(rows, min(k, left), ignore=own)[0]


def _gflop(shape: Sequence[int], compared: int) -> float:
    """Return the cost of comparing each pixel of a layer (y, x, dim) with so many."""
    return 2 * float(np.prod(shape)) * compared / 1e9


def _layers(arrays: Mapping[str, object]) -> list[str]:
    """Return the names of the pixel layers, the finest first."""
    # Numbered without a gap; what else there is has other names.
    return [name for name in (f"layer{number}" for number in range(len(arrays))) if name in arrays]


def _kept(embeddings: Arrays, *, dtype: Dtype) -> Arrays:
    """Return a fragment's maps as they are stored. Raises `ConfigError` where they do not fit."""
    largest = np.finfo(dtype).max
    for name in _layers(embeddings):
        # Not of `np.abs`: a fragment's maps are a gigabyte, and would be there twice.
        reached = max(embeddings[name].max(initial=0), -embeddings[name].min(initial=0))
        if reached > largest:
            raise ConfigError(
                f"features of up to {reached:.3g} do not fit method.gallery_dtype={dtype} "
                f"({largest:.3g}); use method.gallery_dtype=float32"
            )
    return {name: embeddings[name].astype(dtype, copy=False) for name in _layers(embeddings)}


def _load(gallery: Gallery, number: int) -> list[Float32[np.ndarray, "pixels dim"]]:
    kept = gallery.of_image(number)
    return [
        kept[name].reshape(-1, kept[name].shape[-1]).astype(np.float32) for name in _layers(kept)
    ]


METHOD = SPADE
