"""What normal images of a group score: the unit in which members of an ensemble are compared."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float32

from pipeline.scores.heatmap import ColourScale


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Float32[np.ndarray, " values"]) -> "Spread":
        """Return those of the values; of none, or of equal ones, a deviation of 1."""
        if len(values) == 0:
            return cls(0.0, 1.0)
        return cls(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0)

    def standardise(self, values: Float32[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
        """Return how many deviations the values lie above the mean."""
        standard: np.ndarray = (values - self.mean) / self.std
        return standard.astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Scores of training images, each measured without its own part in the model.

    `patches` and `scale` are of the anomaly maps; None where the method has none.
    """

    images: int
    scores: Spread
    patches: Spread | None
    scale: ColourScale | None
    # The score above which an image is anomalous, where the method knows one.
    threshold: float | None = None

    def to_json(self) -> bytes:
        """Return the calibration as JSON; `from_json` undoes it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Calibration":
        """Return the calibration that `to_json` wrote."""
        fields = json.loads(content)
        patches, scale = fields["patches"], fields["scale"]
        return cls(
            images=fields["images"],
            scores=Spread(**fields["scores"]),
            patches=None if patches is None else Spread(**patches),
            scale=None if scale is None else ColourScale(**scale),
            threshold=fields["threshold"],
        )


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
