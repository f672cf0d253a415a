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
  layers up, here the mean is taken of them as well. With `location_radius`, pixels near that place
  are compared, too;
* `gallery: coreset` compares the pixels of all images with one greedy coreset of all training
  pixels for each layer. It is of no paper;
* `distance: cosine` and `image_score: mean_top` are those of RAD (Zhang et al., "Is Task-Specific
  Training Necessary for Anomaly Detection?", ICML 2026, arXiv 2601.22763), whose recipe is the
  preset `rad_paper`: images are retrieved by a global feature, each layer's patches are compared
  with those within a radius of their place, 1 - cos, and the image score is the mean of the largest
  1 % of the map. It differs: the global feature is the mean of the last block's patch tokens, not
  its class token; images of a group are retrieved, not those of all products together; the mean is
  over patches of the map, not over pixels of the smoothed picture.

A search is 2 K P^2 dim operations a layer of P pixels: for K = 50 at 224 x 224, 72 GFLOP with
ResNet-18 and 287 with WideResNet-50, of which `pipeline.index.galleries` does a part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.patches import pooled
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart, closed_up, nearest_others
from patchlake.pipeline.methods.shared.contract import (
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus
from patchlake.pipeline.methods.shared.correspondence import (
    CoresetPixels,
    Pixels,
    RetrievedPixels,
    order_by_overlap,
)
from patchlake.pipeline.methods.shared.maps import (
    layer_names,
    mean_of_largest,
    mean_on_finest_grid,
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
    exact_because: ClassVar[str] = ""
    scored_together: ClassVar[bool] = True
    leaves_by_embedding: ClassVar[bool] = False

    # K of the paper.
    retrieved: Annotated[int, Field(ge=1)] = 50
    # kappa of the paper.
    neighbours: Annotated[int, Field(ge=1)] = 1
    # Of `backbone.layers`, so many of the first (or as many as there are) have their pixels
    # compared; the last is pooled.
    pixel_layers: Annotated[int, Field(ge=1)] = 3
    gallery: Literal["neighbours", "same_location", "coreset"] = "neighbours"
    # Of gallery=same_location: how many pixels of each layer's map, above, below, left and right of
    # a pixel's place, count as the same location.
    location_radius: Annotated[int, Field(ge=0)] = 0
    gallery_dtype: Dtype = "float16"
    # cosine: features have length 1, and distances are 1 - cos.
    distance: Literal["l2", "cosine"] = "l2"
    # retrieved: the mean squared distance to the images retrieved. mean_top: that of the map's
    # largest values, of this share of its patches.
    image_score: Literal["retrieved", "mean_top"] = "retrieved"
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    # Of gallery=coreset: the share of each layer's training pixels (layer1 has four times as many
    # as PatchCore's patches), and what caps it.
    coreset_fraction: Annotated[float, Field(gt=0, le=1)] = 0.001
    max_bank_rows: Annotated[int, Field(ge=1)] = 100_000

    def __post_init__(self) -> None:
        if self.location_radius and self.gallery != "same_location":
            raise ValueError(
                f"location_radius={self.location_radius} is of gallery=same_location, and the "
                f"gallery is {self.gallery}"
            )

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the pooled last layer (images, channels), and maps (images, y, x, channels)."""
        embedded = {
            f"layer{number}": maps.permute(0, 2, 3, 1)
            for number, maps in enumerate(feature_maps[: self.pixel_layers])
        }
        embedded["pooled"] = pooled(feature_maps[-1])
        if self.distance == "cosine":
            return {name: functional.normalize(some, dim=-1) for name, some in embedded.items()}
        return embedded

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:
        """Return the pooled features of all images as the bank, and their maps as the gallery.

        Nothing is computed but for gallery=coreset: O(pixels * coreset * dim) a layer at worst.
        """
        return self._fitted(corpus, None, seed, progress)

    def update(
        self, earlier: EarlierModel, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> FitResult:
        """Return the bank with the features of the corpus, whose maps join the gallery.

        Of gallery=coreset each layer's greedy selection goes on from the rows that there are.
        """
        return self._fitted(corpus, earlier, seed, progress)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - a row of the bank is an image
        *,
        seed: int,  # noqa: ARG002
    ) -> FitResult:
        """Return bank and coresets without the images; the gallery loses them as well."""
        assert earlier.bank is not None
        bank = earlier.bank.without(images)
        facts = dict(earlier.facts) | {"bank_rows": float(len(bank.rows))}
        state: Arrays = {}
        for name in layer_names(earlier.state):
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
        return FitResult(facts, state, bank)

    def _fitted(
        self, corpus: Corpus, earlier: EarlierModel | None, seed: int, progress: Progress | None
    ) -> FitResult:
        bank = MemoryBank.of_images(corpus, "pooled")
        if earlier is not None:
            assert earlier.bank is not None
            bank = earlier.bank.joined(bank, earlier.images)
        facts: dict[str, float | str] = {"bank_rows": float(len(bank.rows))}
        if self.gallery == "coreset":
            state = self._coresets(corpus, earlier, seed, progress)
            facts["gallery_bytes"] = float(sum(array.nbytes for array in state.values()))
            facts["gflop_per_image"] = sum(
                _gflop(corpus.shapes[name], len(state[name])) for name in layer_names(corpus.shapes)
            )
            return FitResult(facts, state, bank)
        shapes = [corpus.shapes[name] for name in layer_names(corpus.shapes)]
        values = len(bank.rows) * sum(int(np.prod(shape)) for shape in shapes)
        facts["gallery_bytes"] = float(values * np.dtype(self.gallery_dtype).itemsize)
        if self.gallery == "neighbours":
            images = min(self.retrieved, len(bank.rows))
            facts["gflop_per_image"] = sum(
                _gflop((y, x, dim), images * y * x) for y, x, dim in shapes
            )
        return FitResult(facts, bank=bank, to_gallery=partial(_kept, dtype=self.gallery_dtype))

    def _coresets(
        self, corpus: Corpus, earlier: EarlierModel | None, seed: int, progress: Progress | None
    ) -> Arrays:
        """Return each layer's coreset by the layer's name, and the images that its rows are of."""
        state: Arrays = {}
        names = layer_names(corpus.shapes)
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

    def prepare(self, group: FittedGroup) -> "SPADEDetector":
        """Return the search among images, and that among their pixels: a gigabyte at most."""
        images = group.search()
        if self.gallery == "coreset":
            return SPADEDetector(self, images, CoresetPixels.of(group.state(), self.neighbours))
        radius = None if self.gallery == "neighbours" else self.location_radius
        pixels = RetrievedPixels.of(group.gallery(), images.size, self.neighbours, radius=radius)
        return SPADEDetector(self, images, pixels)


@dataclass(frozen=True)
class SPADEDetector:
    """The pooled features of a group's training images, a row each, and their pixels."""

    method: SPADE
    images: Search
    pixels: Pixels

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return the mean squared distance of the images retrieved, and the distances of pixels.

        With `image_score: mean_top` the former is of the map.

        Of fewer training images than `retrieved`, all count; of fewer pixels than `neighbours`
        too. A training image (`own`) retrieves others only.
        """
        distances, retrieved = nearest_others(
            self.images, embeddings["pooled"], self.method.retrieved, own
        )
        maps: dict[int, np.ndarray] = {}
        for image in order_by_overlap(retrieved):
            layers = [embeddings[name][image] for name in layer_names(embeddings)]
            rows = [np.ascontiguousarray(layer.reshape(-1, layer.shape[-1])) for layer in layers]
            found = self.pixels.nearest(rows, retrieved[image].tolist(), own)
            means = [self._of_pixels(one) for one in found]
            maps[image] = mean_on_finest_grid(
                [one.reshape(layer.shape[:2]) for one, layer in zip(means, layers, strict=True)]
            )
        grid = embeddings["layer0"].shape[1:3]
        in_order = [maps[image] for image in range(len(retrieved))]
        joined = np.stack(in_order) if maps else np.empty((0, *grid), np.float32)
        if self.method.image_score == "mean_top":
            return Scores(mean_of_largest(joined, self.method.top_fraction), joined)
        squared = np.square(distances, dtype=np.float64).mean(axis=1)
        halved = squared / 2 if self.method.distance == "cosine" else squared
        return Scores(halved.astype(np.float32), joined)

    def _of_pixels(
        self, distances: Float32[np.ndarray, "pixels k"]
    ) -> Float64[np.ndarray, " pixels"]:
        """Return the mean distance of each pixel of a layer to its neighbours."""
        if self.method.distance == "cosine":
            # Of features of length 1, half the squared distance is 1 - cos.
            distances = distances.astype(np.float64) ** 2 / 2
        found: np.ndarray = distances.mean(axis=1, dtype=np.float64)
        return found


def _gflop(shape: Sequence[int], compared: int) -> float:
    """Return the cost of comparing each pixel of a layer (y, x, dim) with so many."""
    return 2 * float(np.prod(shape)) * compared / 1e9


def _kept(embeddings: Arrays, *, dtype: Dtype) -> Arrays:
    """Return a fragment's maps as they are stored. Raises `ConfigError` where they do not fit."""
    largest = np.finfo(dtype).max
    for name in layer_names(embeddings):
        # Not of `np.abs`: a fragment's maps are a gigabyte, and would be there twice.
        reached = max(embeddings[name].max(initial=0), -embeddings[name].min(initial=0))
        if reached > largest:
            raise ConfigError(
                f"features of up to {reached:.3g} do not fit method.gallery_dtype={dtype} "
                f"({largest:.3g}); use method.gallery_dtype=float32"
            )
    return {name: embeddings[name].astype(dtype, copy=False) for name in layer_names(embeddings)}


METHOD: type[Updatable] = SPADE
