"""What normal images of a group score: the unit in which members of an ensemble are compared."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32
from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter

from patchlake.pipeline.scores.heatmap import ColourScale

# An ensemble's unit is a deviation: of two images it may be 1e-8, of five it is known to a third.
_FEWEST_IMAGES = 5
# Float32 has 6e-8; a search and a mean over patches add some more.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation."""

    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]

    @classmethod
    def of(cls, values: Float32[np.ndarray, " values"]) -> "Spread":
        """Return those of the values; of none, or of equal ones, a deviation of 1."""
        if len(values) == 0:
            return cls(0.0, 1.0)
        return cls(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0)

    @property
    def is_rounding(self) -> bool:
        """Whether the values are equal but for the rounding of float32."""
        # `of` gives 1 to equal ones; no other deviation is 1 to the bit.
        return self.std == 1.0 or self.std <= _ROUNDING * abs(self.mean)

    def standardise(self, values: Float32[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
        """Return how many deviations the values lie above the mean."""
        standard: np.ndarray = (values - self.mean) / self.std
        return standard.astype(np.float32)


@dataclass(frozen=True)
class Sample:
    """How one training image scored, measured without its own part in the model."""

    # Its number in the model.
    image: int
    score: float
    # Of its map: the highest point once smoothed, mean and standard deviation of the patches.
    peak: float | None = None
    patch_mean: float | None = None
    patch_std: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Scores of training images, each measured without its own part in the model.

    `patches` and `scale` are of the anomaly maps; None where the method has none.
    """

    images: NonNegativeInt
    scores: Spread
    patches: Spread | None
    scale: ColourScale | None
    # The score above which an image is anomalous, where the method knows one.
    threshold: FiniteFloat | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], threshold: float | None) -> "Calibration":
        """Return what the samples say together; all maps are of one size.

        Without a sample, scores are taken as they are.
        """
        scores = Spread.of(np.array([one.score for one in samples], np.float32))
        known = [one for one in samples if one.peak is not None]
        if samples and not known:
            return cls(len(samples), scores, None, None, threshold)
        peaks = np.array([one.peak for one in known] or [0.0], np.float32)
        means = np.array([one.patch_mean for one in known] or [0.0], np.float64)
        within = np.array([one.patch_std for one in known] or [0.0], np.float64)
        std = float(np.sqrt(np.mean(within**2) + means.var())) or 1.0
        patches = Spread(float(means.mean()), std)
        return cls(len(samples), scores, patches, ColourScale.of_normal(peaks), threshold)

    @property
    def unit_fault(self) -> str | None:
        """Why scores and maps cannot be compared in these deviations; None where they can."""
        if self.images < _FEWEST_IMAGES:
            return f"calibrated on {self.images} images, of {_FEWEST_IMAGES} at least"
        for what, spread in (("scores", self.scores), ("patches", self.patches)):
            if spread is not None and spread.is_rounding:
                return (
                    f"calibrated on {self.images} images whose {what} ({spread.mean:.6g}) differ "
                    f"by no more than rounding ({spread.std:.2g})"
                )
        return None

    def to_json(self) -> bytes:
        """Return the calibration as JSON; `from_json` undoes it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Calibration":
        """Return the calibration that `to_json` wrote.

        Raises:
            ValueError: if it is none: a number that is not finite, a deviation of 0 or less.
        """
        calibration = _READER.validate_json(content)
        scale = calibration.scale
        if scale is not None and not -np.inf < scale.low < scale.high < np.inf:
            raise ValueError(f"colours from {scale.low} to {scale.high}")
        return calibration


_READER = TypeAdapter(Calibration)


def mean_scale(members: Sequence[Calibration]) -> ColourScale | None:
    """Return the colour scale of an ensemble: the mean of its members', in their units.

    A spot that all members see as clearly as their own scale's low end begins to be coloured.
    None if no member has a map.
    """
    scales = [(one.patches, one.scale) for one in members if one.patches and one.scale]
    if not scales:
        return None
    low = np.mean([(scale.low - patches.mean) / patches.std for patches, scale in scales])
    high = np.mean([(scale.high - patches.mean) / patches.std for patches, scale in scales])
    return ColourScale(float(low), float(high))
