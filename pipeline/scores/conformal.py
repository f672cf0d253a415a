"""Conformal p-values: how rarely a good image scores so high, without assuming any law of scores.

Bates, Candès, Lei, Romano and Sesia, "Testing for Outliers with Conformal p-values", Annals of
Statistics 2023: of n scores of good images, exchangeable with a new one, p(s) = (1 + the number of
scores >= s) / (n + 1) is at most a with probability at most a. Shots of one part are not
exchangeable with those of another, but parts are. Lee, Barber and Willett, "Distribution-free
Inference with Hierarchical Data", 2023: with each score weighing 1 / (number of its part's scores),
and K parts, p(s) = (1 + the weight of scores >= s) / (K + 1) holds the same for an image of a new
part. With one image a part, both are the same.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

# Weights such as 1/3 add up to 1 but for rounding: by 1e-16 times the number of images.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Conformal:
    """Scores of good images, rising, and for each the weight of it and of all above it."""

    scores: Float32[np.ndarray, " images"]
    # tails[i] is the weight of scores[i:]; the last one is 0.
    tails: Float64[np.ndarray, " tails"]
    # Number of parts that the scores are of, K.
    parts: int

    @classmethod
    def of(
        cls, scores: Float32[np.ndarray, " images"], parts: Int[np.ndarray, " images"]
    ) -> "Conformal":
        """Return the calibration by scores of good images.

        Args:
            scores: One an image, measured as if the image were new; in any order.
            parts: Of each image, a number that tells its part from the others.
        """
        _, part, counts = np.unique(parts, return_inverse=True, return_counts=True)
        weights = 1 / counts[part]
        order = np.lexsort((weights, scores))
        tails = np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
        return cls(np.asarray(scores, np.float32)[order], tails, len(counts))

    def p_values(self, scores: Float32[np.ndarray, " new"]) -> Float64[np.ndarray, " new"]:
        """Return the p-value of each score: from 1 / (K + 1) to 1."""
        # As float32, or a score would differ from its equal.
        new = np.asarray(scores, np.float32)
        above = self.tails[np.searchsorted(self.scores, new, side="left")]
        return np.asarray((1 + above) / (self.parts + 1))

    @property
    def smallest(self) -> float:
        """The smallest false alarm rate that can be promised: 1 / (K + 1)."""
        return 1 / (self.parts + 1)

    def threshold(self, rate: float) -> float:
        """Return the score above which, and only above which, p is at most a false alarm rate.

        For rates below `smallest` it is that of `smallest`: the highest score of a good image.

        Args:
            rate: Above 0 and below 1.

        Raises:
            ValueError: if there is no score to go by.
        """
        if not self.parts:
            raise ValueError("no good image was measured: nothing can be promised")
        promised = max(rate, self.smallest) + _ROUNDING
        return float(self.scores[self.p_values(self.scores) > promised].max(initial=-np.inf))


def parts_needed(rate: float) -> int:
    """Return how many parts it takes to promise a false alarm rate: 1 / (K + 1) <= rate."""
    return int(np.ceil(1 / rate - 1 - _ROUNDING))
