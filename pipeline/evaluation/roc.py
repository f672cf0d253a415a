"""Area under the ROC curve of image scores.

Hanley and McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic
(ROC) Curve", Radiology 1982: the area is the probability that an anomalous image scores above a
good one, ties counted half (the Mann-Whitney statistic).
"""

import numpy as np
from jaxtyping import Bool, Float


def auroc(
    scores: Float[np.ndarray, " images"], is_anomalous: Bool[np.ndarray, " labels"]
) -> float | None:
    """Return the exact area under the ROC curve, 0..1; None if a class is absent.

    Pairs are counted in integers, so the result is the nearest float64 to the true fraction.
    Infinite scores are ordered like any other. Time is O(n log n).

    Args:
        scores: Larger is more anomalous.
        is_anomalous: One label for each score.

    Raises:
        ValueError: if a score is NaN or the lengths differ.
    """
    if scores.shape != is_anomalous.shape:
        msg = f"scores have shape {scores.shape}, labels {is_anomalous.shape}; they must agree"
        raise ValueError(msg)
    if (missing := int(np.isnan(scores).sum())) > 0:
        msg = f"{missing} of {scores.size} scores are NaN; leave out images without a score"
        raise ValueError(msg)
    levels, level = np.unique(scores, return_inverse=True)
    anomalous = np.bincount(level[is_anomalous], minlength=levels.size)
    good = np.bincount(level[~is_anomalous], minlength=levels.size)
    pairs = int(anomalous.sum()) * int(good.sum())
    if pairs == 0:
        return None
    # 2 for each good image below, 1 for each tied: below 2**63 up to 4e9 images.
    twice_wins = int(np.sum(anomalous * (2 * np.cumsum(good) - good)))
    return twice_wins / (2 * pairs)
