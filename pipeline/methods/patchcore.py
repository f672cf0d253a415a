"""PatchCore: distance to the nearest patch of a coreset of normal patches.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265).

Deliberate differences from the paper:

* the coreset is selected in the full space, not in a random projection, unless `projection` asks
  for one (`pipeline.maths.coreset`);
* the image score is s* (Eq. 6) by default. `image_score: reweighted` is Eq. 7; the paper does not
  state b, 9 is what others use;
* `image_score: mean_top` and `distance: cosine` are those of AnomalyDINO (Damm et al., WACV 2025,
  arXiv 2405.14529), whose recipe is the preset `anomalydino_paper`; its masking of the background
  is left out, and images are made square, where the recipe keeps their shape;
* `rotations` are its rotations of few training images (`pipeline.images.rotations`): the coreset is
  then selected of the patches of all copies of an image, which count as its own;
* `max_bank_rows` caps what `coreset_fraction` asks for;
* with `position_radius`, a patch is compared only with rows from within so many patches of its own
  place, and the coreset is selected in that distance (`pipeline.maths.near_coreset`), so that a row
  is near each place;
* layers are joined by concatenation unless they have the 512 and 1024 channels for which the
  authors' 1024 dimensions are defined (`pipeline.features.patches`);
* with `layers_apart`, each layer has a memory bank of its own, on its own grid, and the maps are
  joined instead: the mean over the layers, brought bilinearly to the finest grid, as RAD (Zhang et
  al., ICML 2026, arXiv 2601.22763) and SuperADD (Roming et al., 2026, arXiv 2605.14808) have it. L2
  distances are divided by the dimensions of their layer before, as in SuperADD's code; those by
  cosine are not, as in RAD's. In both all layers have one grid and as many dimensions, being blocks
  of a vision transformer. `superadd_paper` is the preset.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.features import patches
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.positioned import PositionedSearch
from patchlake.pipeline.index.search import DeviceSearch, Search
from patchlake.pipeline.methods.shared.bank import OwnPart, nearest_others, others
from patchlake.pipeline.methods.shared.contract import (
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus
from patchlake.pipeline.methods.shared.layers import Layer, LayersDetector
from patchlake.pipeline.methods.shared.maps import layer_names, mean_of_largest
from patchlake.pipeline.methods.shared.nearness import Nearness
from patchlake.pipeline.methods.shared.patch_bank import PatchBank
from patchlake.pipeline.methods.shared.selection import Projection, Selector, Strategy
from patchlake.pipeline.methods.shared.stacked import (
    named,
    parts_of,
    rows_of,
    stacked,
    unstacked,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PatchCore:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (2, 3)
    # A 95 % quantile of 200 rests on 10 images above it.
    calibration_images: ClassVar[int] = 200
    scored_together: ClassVar[bool] = False
    leaves_by_embedding: ClassVar[bool] = False

    # None: official where it is defined, else concat.
    embedding: Literal["official", "concat"] | None = None
    # p of Eq. 2; the official embedding is defined for 3.
    neighbourhood: Literal[1, 3, 5, 7, 9, 11, 13, 15] = 3
    coreset_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    # A fraction of the patches makes fits quadratic in the images; this caps it.
    max_bank_rows: Annotated[int, Field(ge=1)] = 100_000
    # Where the coreset is selected; auto goes by `memory_budget`.
    coreset: Strategy = "auto"
    # Select in so many random dimensions ("gaussian": the authors' code's 128); None: in all.
    projection: Projection = None
    image_score: Literal["max", "reweighted", "mean_top"] = "max"
    # b of Eq. 7.
    reweight_neighbours: Annotated[int, Field(ge=1)] = 9
    # Share of an image's patches, the farthest ones, whose mean is the score `mean_top`.
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    # cosine: patch embeddings have length 1, and distances are 1 - cos.
    distance: Literal["l2", "cosine"] = "l2"
    # A memory bank for each layer, on its own grid; their maps are joined. False: one bank of
    # patches with the features of all layers.
    layers_apart: bool = False
    # How many patches above, below, left and right of a patch the rows may come from that it is
    # compared with; 0 is its own place alone. None: from anywhere.
    position_radius: Annotated[int, Field(ge=0)] | None = None
    # A training image is learned from in so many positions, turned by equal parts of a full turn.
    # Images that are scored are never turned.
    rotations: Literal[1, 2, 4, 8] = 1

    def __post_init__(self) -> None:
        if self.embedding == "official" and self.neighbourhood != 3:  # noqa: PLR2004
            raise ValueError("the official embedding is defined for neighbourhood 3")
        if self.image_score == "reweighted" and self.distance == "cosine":
            raise ValueError("Eq. 7 is of L2 distances; use image_score max or mean_top")
        if self.layers_apart and self.embedding == "official":
            raise ValueError("the official embedding joins layers; use embedding concat")
        if self.layers_apart and self.image_score == "reweighted":
            raise ValueError("Eq. 7 is of one memory bank; use image_score max or mean_top")
        if self.position_radius is not None and self.rotations > 1:
            raise ValueError(
                f"position_radius={self.position_radius} keeps patches to their places, and "
                f"rotations={self.rotations} brings them to others; leave one of the two out"
            )
        if self.position_radius is not None and self.coreset == "distributed":
            raise ValueError(
                "workers hold no rows by place; use coreset auto, driver or partitioned"
            )

    @property
    def exact_because(self) -> str:
        """See `Method`."""
        if self.position_radius is not None:
            return (
                "an approximate index finds rows from any place, and "
                f"method.position_radius={self.position_radius} asks for those near a patch"
            )
        if self.layers_apart:
            return "an index is of one bank, and method.layers_apart=true makes one for each layer"
        return ""

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return patch embeddings (images, rows, columns, dim), of each layer or of all."""
        if self.layers_apart:
            return {
                f"layer{number}": self._of_length_1(
                    patches.concat_embedding([maps], self.neighbourhood)
                )
                for number, maps in enumerate(feature_maps)
            }
        channels = tuple(maps.shape[1] for maps in feature_maps)
        is_official = channels == patches.OFFICIAL_CHANNELS and self.neighbourhood == 3  # noqa: PLR2004
        if self.embedding == "official" or (self.embedding is None and is_official):
            embedded = patches.official_embedding(feature_maps)
        else:
            embedded = patches.concat_embedding(feature_maps, self.neighbourhood)
        return {"patches": self._of_length_1(embedded)}

    def _of_length_1(self, embedded: Tensor) -> Tensor:
        return functional.normalize(embedded, dim=-1) if self.distance == "cosine" else embedded

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:
        """Return the coreset of all patches (algorithm 1) and where each row is from."""
        if not self.layers_apart:
            return self._bank(seed).fit(corpus, progress)
        names = layer_names(corpus.shapes)
        told = _each_in_turn(progress, len(names))
        return stacked(
            {
                name: self._bank(seed, name).fit(corpus, of_layer)
                for name, of_layer in zip(names, told, strict=True)
            }
        )

    def update(
        self, earlier: EarlierModel, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> FitResult:
        """Return the bank and the patches of the corpus that greedy picks after it."""
        if not self.layers_apart:
            return self._bank(seed).update(earlier, corpus, progress)
        apart = unstacked(earlier)
        told = _each_in_turn(progress, len(apart))
        return stacked(
            {
                name: self._bank(seed, name).update(of_layer, corpus, progress)
                for (name, of_layer), progress in zip(apart.items(), told, strict=True)
            }
        )

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - the bank knows whose its rows are
        *,
        seed: int,
    ) -> FitResult:
        """Return the bank without the images' rows; nothing takes their place."""
        if not self.layers_apart:
            return self._bank(seed).withdraw(earlier, images)
        return stacked(
            {
                name: self._bank(seed, name).withdraw(of_layer, images)
                for name, of_layer in unstacked(earlier).items()
            }
        )

    def _bank(self, seed: int, embedding: str = "patches") -> PatchBank:
        return PatchBank(
            selector=Selector(self.coreset, self.projection, seed, embedding),
            coreset_fraction=self.coreset_fraction,
            max_bank_rows=self.max_bank_rows,
            position_radius=self.position_radius,
        )

    def prepare(self, group: FittedGroup) -> "PatchCoreDetector | LayersDetector":
        """Return the search among the patches of the coreset, or one for each layer."""
        state = group.state()
        if self.layers_apart:
            _on_processors("layers_apart")
            # What each layer has to give is its map; image scores are of the joined one.
            alone, rows = replace(self, image_score="max"), rows_of(group.rows(), state)
            layers = [
                Layer(
                    _detector(alone, rows[name], named(state, name)),
                    part,
                    1 if self.distance == "cosine" else dim,
                )
                for name, part, dim in parts_of(state)
            ]
            return LayersDetector(layers, self._of_maps)
        if Nearness.stored(state, self.position_radius) is None:
            return PatchCoreDetector(self, group.search())
        _on_processors("position_radius")
        return _detector(self, group.rows(), state)

    def _of_maps(
        self, maps: Float32[np.ndarray, "images rows columns"]
    ) -> Float32[np.ndarray, " images"]:
        if self.image_score == "mean_top":
            return mean_of_largest(maps, self.top_fraction)
        farthest: np.ndarray = maps.max(axis=(1, 2))
        return farthest


def _detector(
    method: PatchCore, rows: Float32[np.ndarray, "bank dim"], state: Arrays
) -> "PatchCoreDetector":
    """Return a search over rows that are in this process."""
    nearness = Nearness.stored(state, method.position_radius)
    if nearness is None:
        return PatchCoreDetector(method, search_over(ExactSearch.over(rows)))
    return PatchCoreDetector(method, nearness.search(rows, state))


def _on_processors(setting: str) -> None:
    if torch.cuda.is_available():
        log.info("method.%s: the bank is searched on the CPU, not on the GPU", setting)


def _each_in_turn(progress: Progress | None, count: int) -> list[Progress | None]:
    """Return what tells the progress of each of so many selections as a share of all."""
    if progress is None:
        return [None] * count

    def told(number: int, done: int, total: int) -> None:
        progress(number * total + done, count * total)

    return [partial(told, number) for number in range(count)]


@dataclass(frozen=True)
class PatchCoreDetector:
    """A group's coreset."""

    method: PatchCore
    search: Search | PositionedSearch

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return s* (Eq. 6) or s (Eq. 7) of each image, and every patch's distance to the bank."""
        shape = embeddings["patches"].shape
        queries = embeddings["patches"].reshape(-1, shape[-1])
        search = self._at(np.arange(len(queries)), shape)
        nearest = nearest_others(search, queries, 1, own)
        return self._scores(shape, *nearest, queries.__getitem__, own)

    def _at(self, numbers: Int64[np.ndarray, " some"], shape: Sequence[int]) -> Search:
        """Return the search for patches by their numbers in images of a shape.

        Raises:
            ValueError: if their grid is not that of the bank's places.
        """
        if not isinstance(self.search, PositionedSearch):
            return self.search
        height, width = shape[1:3]
        if (height, width) != self.search.grid:
            raise ValueError(
                f"images have {height} x {width} patches, the bank's places are of "
                f"{self.search.grid[0]} x {self.search.grid[1]}"
            )
        places = np.stack(np.divmod(numbers % (height * width), width), axis=1)
        return self.search.at(places)

    @property
    def is_on_device(self) -> bool:
        """Whether the search is."""
        return isinstance(self.search, DeviceSearch)

    def score_on_device(self, embeddings: dict[str, Tensor]) -> Scores:
        """Return what `score` returns of new images, to the bit."""
        assert isinstance(self.search, DeviceSearch)
        queries = embeddings["patches"].flatten(end_dim=-2)
        nearest = self.search.nearest_on_device(queries, 1)

        def of_number(number: np.ndarray) -> np.ndarray:
            return queries[torch.from_numpy(number).to(queries.device)].cpu().numpy()

        return self._scores(embeddings["patches"].shape, *nearest, of_number, None)

    def _scores(
        self,
        shape: Sequence[int],
        distances: Float32[np.ndarray, "patches 1"],
        rows: Int64[np.ndarray, "patches 1"],
        of_number: Callable[[np.ndarray], np.ndarray],
        own: OwnPart | None,
    ) -> Scores:
        """Return the scores of images, from each patch's nearest row.

        `of_number` returns patches by their number in those of all images.
        """
        images, height, width = shape[:3]
        by_image = distances.reshape(images, height * width)
        worst = by_image.argmax(axis=1)
        image_scores = by_image.max(axis=1)
        if self.method.image_score == "reweighted":
            number = np.arange(images) * height * width + worst
            farthest = _Farthest(of_number(number), rows[number, 0], image_scores)
            image_scores = self._reweighted(farthest, self._at(number, shape), own)
        maps = by_image.reshape(images, height, width)
        if self.method.distance == "cosine":
            # Of unit vectors, half the squared distance is 1 - cos.
            image_scores, maps = image_scores**2 / 2, maps**2 / 2
        if self.method.image_score == "mean_top":
            image_scores = mean_of_largest(maps, self.method.top_fraction)
        return Scores(image_scores, maps)

    def _reweighted(
        self, farthest: "_Farthest", search: Search, own: OwnPart | None
    ) -> Float32[np.ndarray, " images"]:
        """Return Eq. 7: (1 - exp|m_test - m*| / sum over N_b(m*) of exp|m_test - m|) s*.

        N_b(m*) are the b bank rows nearest to m*, itself among them; of rows near a place, they are
        of those that m_test is compared with. By log-sum-exp, since exp overflows float32 at a
        distance of 88. With b = 1 the formula would give 0; it means s*.
        """
        b, distances = self.method.reweight_neighbours, farthest.distances
        if min(b, others(search, own)) == 1 or len(distances) == 0:
            return distances
        _, neighbours = nearest_others(search, search.vectors(farthest.rows), b, own)
        around = search.vectors(neighbours).astype(np.float64) - farthest.patches[:, None, :]
        lengths = np.linalg.norm(around, axis=2)
        largest = lengths.max(axis=1, keepdims=True)
        log_sum = largest[:, 0] + np.log(np.exp(lengths - largest).sum(axis=1))
        weight = 1 - np.exp(distances - log_sum)
        reweighted: np.ndarray = (weight * distances).astype(np.float32)
        return reweighted


@dataclass(frozen=True)
class _Farthest:
    """Of each image m_test, the patch that is farthest from the bank, the row m* and s*."""

    patches: Float32[np.ndarray, "images dim"]
    rows: Int64[np.ndarray, " images"]
    distances: Float32[np.ndarray, " images"]


METHOD: type[Updatable] = PatchCore
