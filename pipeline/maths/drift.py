"""Whether a night's images are as those that a model was trained on: a test that needs no law.

The null: the parts of the night are drawn as those of the training images were. Shots of one part
are not independent, so each part is represented by one of its images, drawn by a number that has
nothing to do with what is in it. Then, whatever the law and however many shots a part has, the
representatives of night and training are exchangeable, and every test below is one of ranks among
them. That also takes into account that the training images are a sample of some number.

* Brightness and sharpness: Mann and Whitney, "On a Test of Whether one of Two Random Variables is
  Stochastically Larger than the Other" (Annals of Mathematical Statistics 18, 1947), two-sided;
  exact up to 8 parts in one of the two, else by its normal law, with ties.
* Scores: the same, but only whether the night's are higher. Those of training images are measured
  without their part, and that leaves a hole in a coreset that was chosen with it: they are higher
  than those of a new part, never lower.
* Embeddings, along the direction that tells night and training apart best (Fisher's discriminant,
  with a shrunk covariance). It is found on one half of the parts, and the other half is tested, and
  the other way round: so a move that is small beside how parts differ is found, if they hardly
  differ in its direction. The same along each of the first principal directions, of night and
  training together, since what is symmetric in the two leaves them exchangeable. Then how strange
  each part is, its squared distance from the median in units of the median deviation of each
  direction: whether the night's are stranger, and whether they have too many of the strangest
  (hypergeometric), which finds a few foreign parts among many good ones.

p-values of one night are combined by Bonferroni: over the tests of the embedding, and then over the
signals. Those of many nights depend on one another, as all are compared with the same training
images; Benjamini and Yekutieli, "The control of the false discovery rate in multiple testing under
dependency" (Annals of Statistics 29, 2001), theorem 1.3, holds the rate under any dependence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt64
from scipy import stats

from patchlake.pipeline.maths.discoveries import largest_discovered
from patchlake.pipeline.maths.gaussian import Moments
from patchlake.pipeline.maths.shrinkage import Powers, ledoit_wolf

# Parts that are compared. More would find what is too small to matter.
NIGHT_PARTS, TRAINED_PARTS = 256, 1_000
# Share of nights without drift among those that are found, in expectation, at the most.
RATE = 0.05
# Principal directions that are looked along one by one.
_DIRECTIONS = 8
# Fewest parts of both together for each direction that is looked along.
_PARTS_A_DIRECTION = 4
_ALTERNATIVES = {"scores": "greater"}
# Of the largest variance of a direction: what is less is rounding.
_FLAT = 1e-9
# Of a normal law, the standard deviation in median deviations.
_NORMAL = 1.4826
# Share of a night's parts of which the strangest are counted.
_STRANGEST = 0.2


@dataclass(frozen=True)
class Photos:
    """What is compared of some images; NaN where it is not known."""

    # Of each image a number that tells its part from the others.
    parts: Int64[np.ndarray, " images"]
    # Of each image another number, as good as random, by which it represents its part.
    marks: UInt64[np.ndarray, " images"]
    brightness: Float[np.ndarray, " images"]
    sharpness: Float[np.ndarray, " images"]
    scores: Float[np.ndarray, " images"]
    embeddings: Float[np.ndarray, "images width"]


@dataclass(frozen=True)
class Comparison:
    """What is said of a night."""

    # Parts of the night, and of the training images, that were compared.
    parts: int
    trained_parts: int
    # By signal that could be tested, each times their number and at most 1.
    p_values: Mapping[str, float] = field(default_factory=dict)
    # How far the night's mean image lies from that in training, in standard deviations of a part.
    shift: float | None = None

    @property
    def p_value(self) -> float | None:
        """Of the night; None where nothing could be tested."""
        return min(self.p_values.values(), default=None)


def compared(night: Photos, training: Photos) -> Comparison:
    """Return what a night's images differ in from those that a model was trained on.

    The same for any order of the images. Time is that of sorting 1,256 values in 34 directions.
    """
    tests: dict[str, float] = {}
    for name in ("brightness", "sharpness", "scores"):
        one = _drawn(night, getattr(night, name)[:, np.newaxis], NIGHT_PARTS)
        two = _drawn(training, getattr(training, name)[:, np.newaxis], TRAINED_PARTS)
        if len(one) and len(two):
            tests[name] = float(_ranked(one, two, _ALTERNATIVES.get(name, "two-sided"))[0])
    one = _drawn(night, night.embeddings, NIGHT_PARTS)
    two = _drawn(training, training.embeddings, TRAINED_PARTS)
    shift = None
    if len(one) and len(two) and one.shape[1] == two.shape[1] > 0:
        tests["embedding"] = _embedded(one, two)
        shift = _shift(one, two)
    p_values = {name: min(1.0, len(tests) * p) for name, p in tests.items()}
    parts = min(NIGHT_PARTS, len(np.unique(night.parts)))
    trained_parts = min(TRAINED_PARTS, len(np.unique(training.parts)))
    return Comparison(parts, trained_parts, p_values, shift)


def drifting(
    p_values: Float64[np.ndarray, " nights"], rate: float = RATE
) -> tuple[Bool[np.ndarray, " nights"], float]:
    """Return which nights drift, and the largest p-value that does (0 where none does).

    Args:
        p_values: Of all nights of all groups that were tested.
        rate: Share of nights without drift among them, in expectation, at the most; where no night
            drifts, the probability that any is called so.
    """
    harmonic = float(np.sum(1 / np.arange(1, len(p_values) + 1)))
    largest = largest_discovered(p_values, rate / harmonic) if len(p_values) else None
    if largest is None:
        return np.zeros(len(p_values), bool), 0.0
    return np.asarray(p_values <= largest), largest


def _drawn(
    photos: Photos, values: Float[np.ndarray, "images width"], at_most: int
) -> Float64[np.ndarray, "parts width"]:
    """Return the values of one image a part that has any, of so many parts."""
    known = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(known) or not values.shape[1]:
        return np.empty((0, values.shape[1]))
    order = known[np.argsort(photos.marks[known], kind="stable")]
    _, first = np.unique(photos.parts[order], return_index=True)
    # By their marks, and not by the numbers of the parts: those hang on the order of the images.
    return np.asarray(values[order[np.sort(first)][:at_most]], np.float64)


def _ranked(
    one: Float64[np.ndarray, "night width"],
    two: Float64[np.ndarray, "training width"],
    alternative: str = "two-sided",
) -> Float64[np.ndarray, " width"]:
    """Return the p-value of each column."""
    found = stats.mannwhitneyu(one, two, axis=0, alternative=alternative).pvalue
    # Where all values are the same there is no rank to go by.
    return np.nan_to_num(np.asarray(found, np.float64), nan=1.0)


def _embedded(
    one: Float64[np.ndarray, "night width"], two: Float64[np.ndarray, "training width"]
) -> float:
    """Return the p-value of the embeddings."""
    turned = _turned(np.concatenate([one, two]))
    if not turned.shape[1]:
        return 1.0
    along = turned[:, -_DIRECTIONS:]
    strange = _strange(turned)
    tests = [
        *_ranked(along[: len(one)], along[len(one) :]),
        _higher(strange[: len(one)], strange[len(one) :]),
        _strangest(strange, len(one)),
        # Of both, the parts are in the order of their marks: as good as any two halves.
        _told_apart(one[::2], two[::2], one[1::2], two[1::2]),
        _told_apart(one[1::2], two[1::2], one[::2], two[::2]),
    ]
    return float(min(1.0, len(tests) * min(tests)))


def _told_apart(
    one: Float64[np.ndarray, "night width"],
    two: Float64[np.ndarray, "training width"],
    new: Float64[np.ndarray, "new width"],
    other: Float64[np.ndarray, "other width"],
) -> float:
    """Return the p-value of parts, along the direction that tells other parts apart."""
    if not len(one) or not len(new) or len(other) < 2 or len(two) < 2:  # noqa: PLR2004 - a spread
        return 1.0
    own = [part - part.mean(axis=0) for part in (one, two)]
    covariance = _shrunk(np.concatenate(own))
    if covariance is None:
        return 1.0
    direction = np.linalg.solve(covariance, one.mean(axis=0) - two.mean(axis=0))
    return _higher(new @ direction, other @ direction)


def _higher(one: Float64[np.ndarray, " night"], two: Float64[np.ndarray, " training"]) -> float:
    return float(_ranked(one[:, np.newaxis], two[:, np.newaxis], "greater")[0])


def _strange(turned: Float64[np.ndarray, "parts directions"]) -> Float64[np.ndarray, " parts"]:
    centred = np.abs(turned - np.median(turned, axis=0))
    spread = _NORMAL * np.median(centred, axis=0)
    # Half of the parts may be the same in a direction.
    spread = np.where(spread > 0, spread, centred.mean(axis=0))
    return np.asarray(np.sum((centred / spread) ** 2, axis=1))


def _shrunk(centred: Float64[np.ndarray, "parts width"]) -> Float64[np.ndarray, "w w"] | None:
    """Return the covariance of rows, shrunk, as that of few is of no use; None of equal ones."""
    moments = Moments(len(centred), np.zeros(centred.shape[1]), centred.T @ centred)
    covariance, _ = ledoit_wolf(moments, Powers.of(centred, moments.mean).fourth)
    trace = float(np.trace(covariance))
    if not trace > 0:
        return None
    covariance.flat[:: len(covariance) + 1] += _FLAT * trace
    return covariance


def _turned(every: Float64[np.ndarray, "parts width"]) -> Float64[np.ndarray, "parts directions"]:
    """Return rows along their principal directions, as many as there are parts to look along."""
    centred = every - every.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(every))
    most = max(1, len(every) // _PARTS_A_DIRECTION)
    kept = np.flatnonzero(variances > _FLAT * max(variances[-1], np.finfo(float).tiny))[-most:]
    return np.asarray(centred @ directions[:, kept])


def _strangest(strange: Float64[np.ndarray, " parts"], night: int) -> float:
    """Return how rarely so many of the strangest parts are of the night, the first of them."""
    count = int(np.ceil(_STRANGEST * night))
    # Of equals, those in training are the strangest.
    order = np.lexsort((np.arange(len(strange)), strange))[::-1][:count]
    return float(stats.hypergeom.sf(np.sum(order < night) - 1, len(strange), night, count))


def _shift(
    one: Float64[np.ndarray, "night width"], two: Float64[np.ndarray, "training width"]
) -> float | None:
    """Return the distance of the means in the training parts' own standard deviations.

    What the distance would be, in
    the mean, of nights without drift is taken off its square, so that such nights have some 0.
    """
    if len(two) < 2:  # noqa: PLR2004 - one part has no spread
        return None
    mean = two.mean(axis=0)
    covariance = _shrunk(two - mean)
    if covariance is None:
        return None
    away = one.mean(axis=0) - mean
    squared = float(away @ np.linalg.solve(covariance, away))
    own = (two - mean).T @ (two - mean) / len(two)
    by_chance = float(np.trace(np.linalg.solve(covariance, own))) * (1 / len(one) + 1 / len(two))
    return float(np.sqrt(max(0.0, squared - by_chance)))
