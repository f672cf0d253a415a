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
  authors' 1024 dimensions are defined (`pipeline.features.patches`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.features import patches
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.positioned import PositionedSearch
from patchlake.pipeline.index.search import DeviceSearch, Search
from patchlake.pipeline.maths.projection import projected
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart, nearest_others, others
from patchlake.pipeline.methods.shared.contract import (
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus
from patchlake.pipeline.methods.shared.near_selection import NearSelector
from patchlake.pipeline.methods.shared.nearness import Nearness
from patchlake.pipeline.methods.shared.selection import Projection, Selector, Strategy, gather_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PatchCore:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (2, 3)
    # A 95 % quantile of 200 rests on 10 images above it.
    calibration_images: ClassVar[int] = 200
    approximable: ClassVar[bool] = True
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
        if self.position_radius is not None and self.rotations > 1:
            raise ValueError(
                f"position_radius={self.position_radius} keeps patches to their places, and "
                f"rotations={self.rotations} brings them to others; leave one of the two out"
            )
        if self.position_radius is not None and self.coreset == "distributed":
            raise ValueError(
                "workers hold no rows by place; use coreset auto, driver or partitioned"
            )

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return patch embeddings (images, rows, columns, dim)."""
        channels = tuple(maps.shape[1] for maps in feature_maps)
        is_official = channels == patches.OFFICIAL_CHANNELS and self.neighbourhood == 3  # noqa: PLR2004
        if self.embedding == "official" or (self.embedding is None and is_official):
            embedded = patches.official_embedding(feature_maps)
        else:
            embedded = patches.concat_embedding(feature_maps, self.neighbourhood)
        if self.distance == "cosine":
            embedded = functional.normalize(embedded, dim=-1)
        return {"patches": embedded}

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:
        """Return the coreset of all patches (algorithm 1) and where each row is from."""
        height, width, _ = corpus.shapes["patches"]
        size = self._size(corpus.images * height * width)
        nearness = Nearness.on((height, width), self.position_radius)
        if nearness is None:
            selection = self._selector(seed).select(corpus, size, progress)
        else:
            near = NearSelector(self._selector(seed), nearness.radius, self.max_bank_rows)
            selection = near.select(corpus, size, progress=progress)
        return _result(_bank(corpus, selection.indices), selection.facts, nearness)

    def update(
        self, earlier: EarlierModel, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> FitResult:
        """Return the bank and the patches of the corpus that greedy picks after it.

        The bank grows to the coreset's share of all patches. `radius_bound` is proven for all
        images: earlier ones were covered by the bank, which only grows.
        """
        assert earlier.bank is not None
        height, width, _ = corpus.shapes["patches"]
        patches_ = float(earlier.facts["patches"]) + corpus.images * height * width
        more = max(0, self._size(int(patches_)) - len(earlier.bank.rows))
        nearness = Nearness.stored(earlier.state, self.position_radius)
        if nearness is None:
            selection = self._selector(seed).extend(corpus, earlier.bank.rows, more, progress)
        else:
            near = NearSelector(self._selector(seed), nearness.radius, self.max_bank_rows)
            selection = near.select(corpus, more, earlier.bank, progress)
        bank = earlier.bank.joined(_bank(corpus, selection.indices), earlier.images)
        added = float(selection.facts["covering_radius"])
        bound = _radius_bound(earlier)
        facts: dict[str, float | str] = {
            "patches": patches_,
            "coreset": selection.facts["coreset"],
            "added_images_radius": added,
        }
        # Patches of places that had lost all rows nearby have other rows now than were measured.
        if bound is not None and not earlier.facts.get("uncovered_places"):
            facts["radius_bound"] = max(bound, added)
        return _result(bank, facts, nearness)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - the bank knows whose its rows are
        *,
        seed: int,
    ) -> FitResult:
        """Return the bank without the images' rows; nothing takes their place.

        What a row covered is within the old radius of it, and so within that and its distance to
        the nearest row that stays: the new `radius_bound`.
        """
        assert earlier.bank is not None
        assert earlier.bank.origin is not None
        bank = earlier.bank.without(images)
        is_gone = np.isin(earlier.bank.origin[:, 0], images)
        left, gone = bank.rows, earlier.bank.rows[is_gone]
        # The radius is of the space that the rows were selected in.
        projection = self._selector(seed).project(left.shape[1])
        if projection is not None:
            left, gone = projected(left, projection), projected(gone, projection)
        nearness = Nearness.stored(earlier.state, self.position_radius)
        if nearness is None:
            farther = float(ExactSearch.over(left).nearest(gone, 1)[0].max(initial=0))
        else:
            places = earlier.bank.origin[:, 1:]
            farther = nearness.farthest(gone, places, np.flatnonzero(is_gone), left)
        patches_ = float(earlier.facts["patches"])
        facts: dict[str, float | str] = {
            "patches": patches_ - round(patches_ / earlier.images) * len(images),
            "coreset": earlier.facts["coreset"],
        }
        bound = _radius_bound(earlier)
        if bound is not None:
            facts["radius_bound"] = bound + farther
        return _result(bank, facts, nearness)

    def _size(self, patches_: int) -> int:
        return min(max(1, int(patches_ * self.coreset_fraction)), self.max_bank_rows)

    def _selector(self, seed: int) -> Selector:
        return Selector(self.coreset, self.projection, seed)

    def prepare(self, group: FittedGroup) -> "PatchCoreDetector":
        """Return the search among the patches of the coreset."""
        state = group.state()
        nearness = Nearness.stored(state, self.position_radius)
        if nearness is None:
            return PatchCoreDetector(self, group.search())
        if torch.cuda.is_available():
            log.info("method.position_radius: the bank is searched on the CPU, not on the GPU")
        return PatchCoreDetector(self, nearness.search(group.rows(), state))


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


def _result(
    bank: MemoryBank, facts: dict[str, float | str], nearness: Nearness | None
) -> FitResult:
    """Return what is stored of a bank, and what is told of it."""
    facts = facts | {"bank_rows": float(len(bank.rows))}
    if nearness is None:
        return FitResult(facts, bank=bank)
    return FitResult(facts | nearness.facts(bank), nearness.state(bank), bank)


def _bank(corpus: Corpus, indices: Int64[np.ndarray, " size"]) -> MemoryBank:
    """Return the rows of these numbers, with the image and the place that each is of."""
    height, width, _ = corpus.shapes["patches"]
    grid = (corpus.images, height, width)
    origin = np.stack(np.unravel_index(indices, grid), axis=1)
    return MemoryBank(gather_rows(corpus, indices), origin=origin)


def _radius_bound(earlier: EarlierModel) -> float | None:
    """Return the covering radius as it was measured, or a bound of it; None where none is known."""
    found = earlier.facts.get("covering_radius", earlier.facts.get("radius_bound"))
    return None if found is None else float(found)


def mean_of_largest(
    maps: Float32[np.ndarray, "images rows columns"], fraction: float
) -> Float32[np.ndarray, " images"]:
    """Return the mean of each map's largest values: the fraction rounded down, one at least."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(flat.shape[1] * fraction))
    largest = np.sort(flat, axis=1)[:, -count:]
    mean: np.ndarray = largest.mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32)


METHOD: type[Updatable] = PatchCore
