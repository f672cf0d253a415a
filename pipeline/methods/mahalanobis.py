"""Mahalanobis AD: distance to a Gaussian of pooled features at each level of a network.

Rippel, Mertens, Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
Anomaly Detection", ICPR 2020 (arXiv 2005.14140).

At each level the spatial mean of the features, its Gaussian with the covariance of Ledoit and Wolf,
and sqrt((x - mu)^T Sigma^-1 (x - mu)); the image score is the sum over levels. There is no anomaly
map. Levels are `backbone.layers`: the preset `mahalanobis_paper` has the nine of EfficientNet-B4.

Images can join and leave a fitted model exactly: beside the whitening the model keeps, in float64,
the scatter of each level, and the two sums of higher powers that Ledoit-Wolf's shrinkage takes.

The threshold of a false-positive rate is the sum of the levels' quantiles. For the usual small
rates this is conservative where levels are independent (`_threshold`).

Deliberate differences from the paper: of a feature that is constant, or a function of others, some
variance is kept (`_with_floor`), where the paper's inverse would not exist. Of its settings,
augmentation and the baselines with other distances are left out; OAS is not in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import Field
from scipy.stats import chi2
from torch import Tensor

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.patches import pooled
from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.gaussian import (
    Moments,
    merge,
    merge_rows,
    whitener,
    without,
    without_all,
)
from patchlake.pipeline.maths.shrinkage import Powers, ledoit_wolf, oas
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import (
    NO_BANK,
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus

# As columns; each level has numbers of its own.
Directions = Float64[np.ndarray, "_dim _kept"]
Summand = TypeVar("Summand", float, Powers)


@dataclass(frozen=True, kw_only=True)
class Mahalanobis:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (0, 1, 2, 3, 4)
    calibration_images: ClassVar[int] = 200
    exact_because: ClassVar[str] = NO_BANK
    scored_together: ClassVar[bool] = False
    leaves_by_embedding: ClassVar[bool] = True

    covariance: Literal["ledoit_wolf", "oas"] = "ledoit_wolf"
    # Directions that count: all, the principal ones that hold `variance` (pca), or those from about
    # the last of these on (npca), where the paper finds most of what is anomalous.
    directions: Literal["all", "pca", "npca"] = "all"
    variance: Annotated[float, Field(gt=0, lt=1)] = 0.99
    # Share of normal images that a threshold may call anomalous, by the chi-square law of Gaussian
    # features; None: no verdicts.
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] | None = None

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the pooled features (images, channels) of each level."""
        return {f"level{number}": pooled(maps) for number, maps in enumerate(feature_maps)}

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:  # noqa: ARG002
        """Return mean and whitening of each level, in two passes over a few KB an image."""
        levels = corpus.reduce(_moments, _merged)
        means = {name: moments.mean for name, moments in levels.items()}
        powers = corpus.reduce(partial(_powers, means=means), _summed)
        fourths = {name: sums.fourth for name, sums in powers.items()}
        directions = self._all_directions(levels)
        if self.directions != "all":
            find = partial(_fourths, means=means, directions=directions)
            fourths = corpus.reduce(find, _summed)
        return self._fitted(levels, powers, directions, fourths)

    def update(
        self,
        earlier: EarlierModel,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - nothing is drawn
        progress: Progress | None = None,  # noqa: ARG002 - as in `fit`
    ) -> FitResult:
        """Return the Gaussians of all images: those that a fit of all gives, to rounding."""
        self._require_statistics(earlier)
        before, sums = _stored(earlier)
        added = corpus.reduce(_moments, _merged)
        means = {name: moments.mean for name, moments in added.items()}
        own = corpus.reduce(partial(_powers, means=means), _summed)
        levels = _merged(before, added)
        powers = {
            name: sums[name].about(before[name], level.mean)
            + own[name].about(added[name], level.mean)
            for name, level in levels.items()
        }
        fourths = {name: of_level.fourth for name, of_level in powers.items()}
        return self._fitted(levels, powers, self._all_directions(levels), fourths)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,
        *,
        seed: int,  # noqa: ARG002
    ) -> FitResult:
        """Return the Gaussians without the images of the corpus, which are those withdrawn."""
        assert corpus is not None
        assert corpus.images == len(images)
        self._require_statistics(earlier)
        if corpus.images >= earlier.images:
            raise ConfigError(
                f"none of the {earlier.images} images would be left; fit again on others"
            )
        before, sums = _stored(earlier)
        gone = corpus.reduce(_moments, _merged)
        levels = {name: without(before[name], moments) for name, moments in gone.items()}
        means = {name: moments.mean for name, moments in levels.items()}
        theirs = corpus.reduce(partial(_powers, means=means), _summed)
        powers = {
            name: sums[name].about(before[name], means[name]) - theirs[name] for name in levels
        }
        fourths = {name: of_level.fourth for name, of_level in powers.items()}
        return self._fitted(levels, powers, self._all_directions(levels), fourths)

    def _require_statistics(self, earlier: EarlierModel) -> None:
        if self.covariance == "ledoit_wolf" and self.directions != "all":
            raise ConfigError(
                f"method.directions={self.directions} with covariance=ledoit_wolf takes fourth "
                "powers along directions that move with every image, which a model cannot keep; "
                "fit again, or fit once with covariance=oas"
            )
        if not earlier.statistics:
            raise ConfigError("the model was fitted before statistics were kept; fit again")

    def _all_directions(self, levels: dict[str, Moments]) -> dict[str, Directions]:
        with on_one_thread():
            return {name: self._directions(moments) for name, moments in levels.items()}

    def _fitted(
        self,
        levels: dict[str, Moments],
        powers: dict[str, Powers],
        directions: dict[str, Directions],
        fourths: dict[str, float],
    ) -> FitResult:
        """Return the whitenings of the levels, and the statistics that they come from."""
        with on_one_thread():
            projected = {name: _project(levels[name], directions[name]) for name in levels}
        means = {name: moments.mean for name, moments in levels.items()}
        state: Arrays = {"count": np.array([next(iter(levels.values())).count])}
        facts: dict[str, float | str] = {}
        threshold = 0.0
        for name, moments in sorted(projected.items()):
            if self.covariance == "oas":
                covariance, shrinkage = oas(moments)
            else:
                covariance, shrinkage = ledoit_wolf(moments, fourths[name])
            whitening = whitener(_with_floor(covariance)) @ directions[name].T
            state[f"{name}.mean"] = means[name]
            state[f"{name}.whitening"] = whitening.astype(np.float32)
            state[f"{name}.shrinkage"] = np.array([shrinkage])
            facts[f"{name}.dimensions"] = float(len(whitening))
            facts[f"{name}.shrinkage"] = shrinkage
            threshold += self._threshold(len(whitening))
        return FitResult(
            facts=facts,
            state=state,
            statistics=_statistics(levels, powers),
            threshold=threshold or None,
        )

    def prepare(self, group: FittedGroup) -> "MahalanobisDetector":
        """Return the Gaussian of each level, in float64, twice the size."""
        state = group.state()
        levels = {name: _Level.of(state, name) for name in _names(state)}
        return MahalanobisDetector(levels, int(state["count"][0]))

    def _directions(self, moments: Moments) -> Directions:
        dim = len(moments.mean)
        if self.directions == "all":
            return np.eye(dim)
        variances, vectors = np.linalg.eigh(moments.scatter)
        variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
        share = np.cumsum(variances) / (variances.sum() or 1.0)
        # The last of as few as hold the share. As the share lies between it and the one before, the
        # authors keep both for NPCA.
        last = min(int(np.searchsorted(share, self.variance)), dim - 1)
        kept = slice(last + 1) if self.directions == "pca" else slice(max(last - 1, 0), None)
        return vectors[:, kept]

    def _threshold(self, dimensions: int) -> float:
        """Return a level's share of the threshold: the quantile of a chi distribution.

        For one level it is exact for Gaussian features; the sum over levels supposes that an image
        is equally far out on all of them, and is too high where they differ: for five independent
        levels 0.05 becomes less than 0.001. Of real images levels agree: for 0.05, 3.7 % of the
        tiles are above it (DenseNet-169, four levels), each measured without itself.
        """
        if self.false_positive_rate is None:
            return 0.0
        return float(np.sqrt(chi2.ppf(1 - self.false_positive_rate, dimensions)))


@dataclass(frozen=True)
class _Level:
    """The Gaussian of one level of the network."""

    mean: Float64[np.ndarray, " dim"]
    whitening: Float64[np.ndarray, "kept dim"]
    # s of (1 - s) scatter / N + s mu I.
    shrinkage: float

    @classmethod
    def of(cls, state: Arrays, name: str) -> "_Level":
        """Return a level of a stored model."""
        # Stored in float32; products with float64 rows are float64.
        whitening = state[f"{name}.whitening"].astype(np.float64)
        return cls(state[f"{name}.mean"], whitening, float(state[f"{name}.shrinkage"][0]))


@dataclass(frozen=True)
class MahalanobisDetector:
    """The Gaussians of a group's images, by the name of the level."""

    levels: Mapping[str, _Level]
    # Training images.
    count: int

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return the sum over levels of each image's distance.

        Training images (`own`) are measured against the Gaussians without themselves, each without
        its own, or all without all of them.
        """
        total = np.zeros(len(next(iter(embeddings.values()))))
        # In one order, whatever order the arrays come in: a sum has other last bits in another.
        for name in sorted(embeddings):
            level = self.levels[name]
            centred = embeddings[name] - level.mean
            # Image by image and without BLAS: the last bits of a product can depend on what is
            # multiplied beside it, and on threads.
            whitened = [np.einsum("wd,d->w", level.whitening, row) for row in centred]
            squared = np.array([np.sum(row**2) for row in whitened])
            if own is not None and own.together:
                squared = _without_all(np.array(whitened), self.count, level.shrinkage)
            elif own is not None:
                squared = _without_itself(squared, self.count, level.shrinkage)
            total += np.sqrt(squared)
        return Scores(total.astype(np.float32), None)


def _moments(
    before: dict[str, Moments] | None,
    embeddings: Arrays,
    first: int,  # noqa: ARG001
) -> dict[str, Moments]:
    levels = before or dict.fromkeys(embeddings)
    return {name: merge_rows(levels[name], rows) for name, rows in embeddings.items()}


def _merged(left: dict[str, Moments], right: dict[str, Moments]) -> dict[str, Moments]:
    return {name: merge(left[name], right[name]) for name in left}


def _project(moments: Moments, directions: Directions) -> Moments:
    scatter = directions.T @ moments.scatter @ directions
    return Moments(moments.count, moments.mean @ directions, scatter)


def _powers(
    before: dict[str, Powers] | None,
    embeddings: Arrays,
    first: int,  # noqa: ARG001
    *,
    means: dict[str, np.ndarray],
) -> dict[str, Powers]:
    found = {name: Powers.of(rows, means[name]) for name, rows in embeddings.items()}
    return found if before is None else _summed(before, found)


def _statistics(levels: dict[str, Moments], powers: dict[str, Powers]) -> Arrays:
    """Return what `_stored` reads: half of each scatter, which is symmetric, and the powers."""
    kept: Arrays = {}
    for name, moments in levels.items():
        kept[f"{name}.scatter"] = moments.scatter[np.tril_indices(len(moments.mean))]
        kept[f"{name}.third"] = powers[name].third
        kept[f"{name}.fourth"] = np.array([powers[name].fourth])
    return kept


def _names(state: Arrays) -> list[str]:
    """Return the names of a stored model's levels."""
    return [name.removesuffix(".mean") for name in state if name.endswith(".mean")]


def _stored(earlier: EarlierModel) -> tuple[dict[str, Moments], dict[str, Powers]]:
    levels, powers = {}, {}
    for name in _names(earlier.state):
        mean = earlier.state[f"{name}.mean"]
        scatter = np.zeros((len(mean), len(mean)))
        scatter[np.tril_indices(len(mean))] = earlier.statistics[f"{name}.scatter"]
        scatter += np.tril(scatter, -1).T
        levels[name] = Moments(earlier.images, mean, scatter)
        fourth = float(earlier.statistics[f"{name}.fourth"][0])
        powers[name] = Powers(earlier.statistics[f"{name}.third"], fourth)
    return levels, powers


def _fourths(
    before: dict[str, float] | None,
    embeddings: Arrays,
    first: int,  # noqa: ARG001
    *,
    means: dict[str, np.ndarray],
    directions: dict[str, np.ndarray],
) -> dict[str, float]:
    found = {}
    # On one thread, as everywhere: the last bits of a product can depend on how many there are.
    with on_one_thread():
        for name, rows in embeddings.items():
            projected = (rows - means[name]) @ directions[name]
            found[name] = Powers.of(projected, np.zeros(projected.shape[1])).fourth
    return found if before is None else _summed(before, found)


def _summed(left: dict[str, Summand], right: dict[str, Summand]) -> dict[str, Summand]:
    return {name: left[name] + right[name] for name in left}


def _with_floor(covariance: Float64[np.ndarray, "dim dim"]) -> Float64[np.ndarray, "dim dim"]:
    """Return the covariance, positive definite also where images are all alike.

    Shrinkage makes it so unless nothing varies at all, or in one direction only of many.
    """
    floor = 1e-10 * max(float(np.trace(covariance)) / len(covariance), 1e-10)
    return covariance + floor * np.eye(len(covariance))


def _without_itself(
    squared: Float64[np.ndarray, " images"], count: int, shrinkage: float
) -> Float64[np.ndarray, " images"]:
    """Return the squared distances of images to the Gaussian that was fitted without them.

    As for PaDiM (`without_itself` there), with Sigma = (1 - s) scatter / N + s mu I, of which s and
    mu are kept: M'^2 = N / (N - 1) M^2 / (1 - (1 - s) / (N - 1) M^2).
    """
    if count <= 2:  # noqa: PLR2004 - the Gaussian of one image knows no spread
        return squared
    ratio = count / (count - 1)
    rest = np.maximum(1 - (1 - shrinkage) / (count - 1) * squared, 1e-9)
    without: np.ndarray = ratio * squared / rest
    return without


def _without_all(
    whitened: Float64[np.ndarray, "images dim"], count: int, shrinkage: float
) -> Float64[np.ndarray, " images"]:
    """Return the squared distances of images to the Gaussian that was fitted without all m of them.

    At most N / (N - m) times as much, as for PaDiM: what is shrunk towards is not scaled.
    """
    left = count - len(whitened)
    if left < 2:  # noqa: PLR2004 - as in `_without_itself`
        return np.asarray(np.sum(whitened**2, axis=1))
    gram = np.einsum("id,jd->ij", whitened, whitened)
    return without_all(gram, count, (1 - shrinkage) / count)


METHOD: type[Updatable] = Mahalanobis
