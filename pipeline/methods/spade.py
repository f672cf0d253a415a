"""SPADE: distance of each pixel's feature to the nearest among those of similar normal images.

Cohen, Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020
(arXiv 2005.02357). Retrieval: the K training images whose pooled features are nearest; the image
score is the mean of their squared distances. Correspondence: at each layer, each pixel's mean
distance to its kappa nearest pixels, at any place, of those K images; the map is the mean over
layers.

Deliberate differences from the paper and its implementations:

* layers are joined on the finest grid (bilinear) and upsampled and smoothed from there, as all maps
  here are; the implementations upsample each layer to the image;
* no row of a gallery is dropped, as byungjae89's implementation does with the last ones;
* the maps of the gallery are float16 on disk (`gallery_dtype`), which moves distances by some 1e-3
  of their length;
* `gallery: same_location` compares a pixel with those at its own place only, as ind_knn_ad does,
  which adds the layers up where the mean is taken here. Its cost is a thousandth;
* `gallery: coreset` replaces the galleries by one coreset of all training pixels a layer: a bank of
  fixed size instead of a gallery as large as the training set, and no retrieval for the map.

Cost: with K images of P pixels at a layer, 2 K P^2 dim operations an image: 280 GFLOP for K = 50 on
ResNet-18 at 224 pixels, 100 times the network. It is told before a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from pipeline.config import Layers
from pipeline.errors import ConfigError
from pipeline.features.patches import pooled
from pipeline.index.choose import search_over
from pipeline.index.galleries import Galleries
from pipeline.maths.resampling import bilinear_matrix
from pipeline.methods.contract import (
    Arrays,
    Corpus,
    Fitted,
    Gallery,
    MemoryBank,
    Model,
    Progress,
    Scores,
)
from pipeline.methods.selection import Selector, gather_rows

_DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True, kw_only=True)
class SPADE:
    """The settings under `method`."""

    # The deepest is pooled for retrieval, the others are the pyramid.
    layers: ClassVar[Layers] = (1, 2, 3, 4)
    # Each costs a scoring.
    calibration_images: ClassVar[int] = 40

    # K and kappa of the paper.
    retrieved: Annotated[int, Field(ge=1)] = 50
    neighbours: Annotated[int, Field(ge=1)] = 1
    gallery: Literal["neighbours", "same_location", "coreset"] = "neighbours"
    gallery_dtype: Literal["float16", "float32"] = "float16"
    # Share of all training pixels, of `gallery: coreset`.
    coreset_fraction: Annotated[float, Field(gt=0, le=1)] = 0.001

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the pooled deepest layer and the others' maps (images, rows, columns, channels).

        Raises:
            ConfigError: if there is no layer beside the pooled one.
        """
        if len(feature_maps) == 1:
            raise ConfigError(
                "SPADE pools the last of backbone.layers and compares the pixels of the others: "
                "one layer leaves none, name two at least"
            )
        maps = {
            f"layer{number}": layer.permute(0, 2, 3, 1)
            for number, layer in enumerate(feature_maps[:-1])
        }
        return {"pooled": pooled(feature_maps[-1])} | maps

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> Fitted:
        """Return the pooled features as the bank, and what of the maps becomes the gallery.

        Of `gallery: coreset`, O(pixels * dim * coreset) time a layer at worst.
        """
        rows = np.concatenate(list(corpus.each(_take_pooled)))
        origin = np.zeros((len(rows), 3), np.int64)
        origin[:, 0] = np.arange(len(rows))
        facts: dict[str, float | str] = {"bank_rows": float(len(rows)), "gallery": self.gallery}
        fitted = Fitted(facts, bank=MemoryBank(rows, "pooled", origin))
        if self.gallery == "coreset":
            return self._with_coresets(fitted, corpus, seed, progress)
        maps = {name: shape for name, shape in corpus.shapes.items() if name != "pooled"}
        numbers = sum(rows * columns * dim for rows, columns, dim in maps.values())
        width = np.dtype(_DTYPES[self.gallery_dtype]).itemsize
        facts["gallery_bytes"] = float(corpus.images * numbers * width)
        if self.gallery == "neighbours":
            retrieved = min(self.retrieved, len(rows))
            pairs = sum((rows * columns) ** 2 * dim for rows, columns, dim in maps.values())
            facts["gflop_per_image"] = 2 * retrieved * pairs / 1e9
        return replace(fitted, gallery=partial(_take_maps, dtype=self.gallery_dtype))

    def prepare(self, model: Model) -> Model:
        """Return the model with the searches among its pixels."""
        if model.gallery is None:
            banks = {name: search_over(rows) for name, rows in model.state.items()}
            return replace(model, searches=banks)
        assert model.search is not None
        load = partial(_load_maps, model.gallery)
        is_pruned = self.gallery == "neighbours"
        return replace(model, pixels=Galleries(load, model.search.size, is_pruned=is_pruned))

    def score(
        self,
        embeddings: Arrays,
        model: Model,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Scores:
        """Return of each image the mean squared distance of retrieval, and the mean over layers.

        Of fewer training images than `retrieved`, all count.
        """
        assert model.search is not None
        left = model.search.size - (0 if ignore is None else len(ignore))
        count = min(self.retrieved, left)
        distances, rows = model.search.nearest(embeddings["pooled"], count, ignore=ignore)
        squared = (distances.astype(np.float64) ** 2).mean(axis=1).astype(np.float32)
        maps: list[np.ndarray] = [np.empty(0)] * len(rows)
        # Images with the same neighbours follow one another: these are in memory then.
        lists = np.sort(rows, axis=1)
        for number in np.lexsort(lists.T[::-1]).tolist():
            image = [embeddings[name][number] for name in layer_names(embeddings)]
            found = self._compared(image, lists[number].tolist(), model)
            grids = [layer.shape[:2] for layer in image]
            maps[number] = joined(
                [mean.reshape(grid) for mean, grid in zip(found, grids, strict=True)]
            )
        return Scores(squared, np.stack(maps) if maps else np.empty((0, 0, 0), np.float32))

    def _compared(
        self, image: Sequence[np.ndarray], retrieved: Sequence[int], model: Model
    ) -> list[Float32[np.ndarray, " pixels"]]:
        """Return, for each layer, each pixel's mean distance to its nearest."""
        queries = [
            np.ascontiguousarray(layer.reshape(-1, layer.shape[-1]), np.float32) for layer in image
        ]
        if model.pixels is None:
            searches = [model.searches[f"layer{number}"] for number in range(len(image))]
            found = [
                search.nearest(rows, min(self.neighbours, search.size))[0]
                for search, rows in zip(searches, queries, strict=True)
            ]
        elif self.gallery == "same_location":
            found = model.pixels.same_place(queries, retrieved, self.neighbours)
        else:
            found = model.pixels.nearest(queries, retrieved, self.neighbours)
        return [distances.mean(axis=1, dtype=np.float64).astype(np.float32) for distances in found]

    def _with_coresets(
        self, fitted: Fitted, corpus: Corpus, seed: int, progress: Progress | None
    ) -> Fitted:
        state: Arrays = {}
        facts = dict(fitted.facts)
        for name in layer_names(corpus.shapes):
            rows, columns, _ = corpus.shapes[name]
            size = max(1, int(corpus.images * rows * columns * self.coreset_fraction))
            selector = Selector("auto", None, seed, embedding=name)
            selection = selector.select(corpus, size, progress)
            state[name] = gather_rows(corpus, selection.indices, name)
            facts[f"{name}.rows"] = float(size)
        return replace(fitted, facts=facts, state=state)


def layer_names(arrays: Mapping[str, object]) -> list[str]:
    """Return the names of the layers' maps, in order."""
    return [f"layer{number}" for number in range(len(arrays) - 1)]


def joined(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
) -> Float32[np.ndarray, "rows columns"]:
    """Return the mean of the layers' maps on the finest grid."""
    rows, columns = max((grid.shape for grid in maps), key=lambda shape: shape[0] * shape[1])
    total = np.zeros((rows, columns))
    for grid in maps:
        total += (
            bilinear_matrix(rows, grid.shape[0]) @ grid @ bilinear_matrix(columns, grid.shape[1]).T
        )
    return (total / len(maps)).astype(np.float32)


def _take_pooled(embeddings: Arrays, first: int) -> np.ndarray:  # noqa: ARG001
    return embeddings["pooled"]


def _take_maps(embeddings: Arrays, *, dtype: str) -> Arrays:
    return {name: embeddings[name].astype(_DTYPES[dtype]) for name in layer_names(embeddings)}


def _load_maps(gallery: Gallery, number: int) -> list[Float32[np.ndarray, "pixels dim"]]:
    maps = gallery.of_image(number)
    layers = (maps[f"layer{layer}"] for layer in range(len(maps)))
    return [layer.reshape(-1, layer.shape[-1]).astype(np.float32) for layer in layers]


METHOD = SPADE
