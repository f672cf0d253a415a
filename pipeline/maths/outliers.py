"""How far the scores of a sample lie above the others, by statistics that outliers do not move."""

import numpy as np
from jaxtyping import Float32, Float64

# Of a normal distribution the median absolute deviation is 0.6745 standard deviations.
_TO_DEVIATIONS = 1 / 0.6745


def deviations(scores: Float32[np.ndarray, " images"]) -> Float64[np.ndarray, " images"]:
    """Return the modified z-score of each score's logarithm.

    z = (log s - median) / (MAD / 0.6745), where MAD is the median of |log s - median| (Iglewicz and
    Hoaglin, "How to detect and handle outliers", 1993; they call 3.5 and more an outlier).
    Distances are positive and skewed to the right, their logarithms much less. Up to half of the
    scores may be outliers before they move the median or MAD at will.

    Args:
        scores: At least 0; larger is worse.

    Returns:
        Standard deviations above the median; below it, negative. All 0 where more than half of the
        scores are equal: then nothing says how far is far.
    """
    if not len(scores):
        return np.empty(0)
    # A score of 0, of an image that is twice in the model, is no smaller than the smallest float32.
    logarithms = np.log(np.maximum(scores, np.finfo(np.float32).tiny).astype(np.float64))
    above = logarithms - np.median(logarithms)
    spread = float(np.median(np.abs(above)))
    return np.zeros(len(scores)) if spread == 0 else above / (spread * _TO_DEVIATIONS)
