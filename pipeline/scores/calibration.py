"""How normal images of a group score: the unit in which models of an ensemble are compared.

Its members' scores are distances in different feature spaces. They are made comparable by the mean
and the standard deviation of the scores of normal images, which are measured at fitting.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32
from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter

from patchlake.pipeline.scores.heatmap import ColourScale

# The unit of an ensemble is a standard deviation. That of two images may be 1e-8 by chance; from
# five images on it is known to about a third of itself.
_FEWEST_IMAGES = 5
# Values that differ by less than this, relative to their mean, differ by rounding only. Float32 has
# 6e-8; a search and a mean over patches add some more.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MeanStd:
    """The mean and the standard deviation of some values."""

    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]

    @classmethod
    def of(cls, values: Float32[np.ndarray, " values"]) -> "MeanStd":
        """Return those of the values. The deviation of no values, or of equal ones, is set to 1."""
        if len(values) == 0:
            return cls(0.0, 1.0)
        return cls(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0)

    @property
    def is_rounding(self) -> bool:
        """Whether the values are equal but for the rounding of float32."""
        # `of` sets the deviation of equal values to 1, which that of others is next to never.
        return self.std == 1.0 or self.std <= _ROUNDING * abs(self.mean)

    def standardise(self, values: Float32[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
        """Return how many deviations the values lie above the mean."""
        standard: np.ndarray = (values - self.mean) / self.std
        return standard.astype(np.float32)


@dataclass(frozen=True)
class Sample:
    """How one training image scores if the model is used without what that image gave to it."""

    # Its number in the model.
    image: int
    score: float
    # Of its anomaly map: the highest point after smoothing, and mean and standard deviation of the
    # patches. None where the method has no maps.
    peak: float | None = None
    patch_mean: float | None = None
    patch_std: float | None = None


@dataclass(frozen=True)
class Judged:
    """What verdicts go by: of images, each measured without what its whole part gave to the model.

    All are of one length, an entry an image.
    """

    scores: tuple[FiniteFloat, ...]
    # A number, equal for images of one part.
    parts: tuple[int, ...]
    # What tells the image from others: the first 8 bytes of its SHA-256; 0 if that is not known.
    images: tuple[int, ...]
    # Highest point of the smoothed map; None where the method has no maps.
    peaks: tuple[FiniteFloat, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is not of one length."""
        peaks = self.scores if self.peaks is None else self.peaks
        lengths = [len(one) for one in (self.scores, self.parts, self.images, peaks)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(f"scores, parts, images and peaks are {lengths}")


@dataclass(frozen=True)
class Calibration:
    """The scores of training images, each measured without what that image gave to the model.

    `images` is their number, `scores` are theirs. `patches` and `scale` are those of the anomaly
    maps; None where images were measured and the method has none.
    """

    images: NonNegativeInt
    scores: MeanStd
    patches: MeanStd | None
    scale: ColourScale | None
    # The score above which an image is anomalous, where the method knows one.
    threshold: FiniteFloat | None = None
    # None where nothing can be promised, and in models of before there were verdicts.
    judged: Judged | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], threshold: float | None) -> "Calibration":
        """Return the calibration by some images, whose maps must be of one size.

        Without samples, the mean is 0 and the deviation 1, which leave scores as they are.

        Args:
            samples: One for each image.
            threshold: The score above which an image is anomalous, where the method knows one.
        """
        scores = MeanStd.of(np.array([one.score for one in samples], np.float32))
        known = [one for one in samples if one.peak is not None]
        if samples and not known:
            return cls(len(samples), scores, None, None, threshold)
        peaks = np.array([one.peak for one in known] or [0.0], np.float32)
        means = np.array([one.patch_mean for one in known] or [0.0], np.float64)
        within = np.array([one.patch_std for one in known] or [0.0], np.float64)
        std = float(np.sqrt(np.mean(within**2) + means.var())) or 1.0
        patches = MeanStd(float(means.mean()), std)
        return cls(len(samples), scores, patches, ColourScale.of_normal(peaks), threshold)

    @property
    def unit_fault(self) -> str | None:
        """Why these deviations cannot serve as a unit, in words; None where they can."""
        if self.images < _FEWEST_IMAGES:
            return f"calibrated on {self.images} images, but {_FEWEST_IMAGES} are needed"
        for what, values in (("scores", self.scores), ("patches", self.patches)):
            if values is not None and values.is_rounding:
                return (
                    f"calibrated on {self.images} images whose {what} ({values.mean:.6g}) differ "
                    f"by no more than rounding ({values.std:.2g})"
                )
        return None

    def to_json(self) -> bytes:
        """Return the calibration as JSON; `from_json` undoes it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Calibration":
        """Return the calibration that `to_json` wrote.

        Raises:
            ValueError: if it is not one: if a number is not finite, or a deviation is 0 or less.
        """
        calibration = _READER.validate_json(content)
        scale = calibration.scale
        if scale is not None and not -np.inf < scale.low < scale.high < np.inf:
            raise ValueError(f"colours from {scale.low} to {scale.high}")
        return calibration


_READER = TypeAdapter(Calibration)


def mean_scale(members: Sequence[Calibration]) -> ColourScale | None:
    """Return the colour scale of an ensemble: the mean of its members' scales, each in its unit.

    So colour begins where all members see a spot as clearly as their own scales begin. None if no
    member has a map.
    """
    scales = [(one.patches, one.scale) for one in members if one.patches and one.scale]
    if not scales:
        return None
    low = np.mean([(scale.low - patches.mean) / patches.std for patches, scale in scales])
    high = np.mean([(scale.high - patches.mean) / patches.std for patches, scale in scales])
    return ColourScale(float(low), float(high))
