"""Covariances shrunk towards a multiple of the identity, from statistics of images in parts.

    Sigma = (1 - s) S + s mu I,   S = scatter / count,   mu = trace(S) / dim

Two choices of s: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", Journal of Multivariate Analysis 88, 2004 (lemma 3.2 to 3.5); Chen, Wiesel, Eldar and
Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal Processing
58, 2010, Eq. 23 (OAS). Both as scikit-learn computes them, whose OAS leaves out the factor 2 / dim
of Eq. 23, and whose Ledoit-Wolf is of centred rows.

Ledoit-Wolf needs the fourth powers of the distances to the final mean: a second pass over the rows.
"""

import numpy as np
from jaxtyping import Float32, Float64

from pipeline.maths.gaussian import Moments


def fourth_powers(
    rows: Float32[np.ndarray, "rows dim"], mean: Float64[np.ndarray, " dim"]
) -> float:
    """Return the sum over rows of |x - mean|^4; parts of the rows add up."""
    centred = rows - mean
    squared = np.einsum("nd,nd->n", centred, centred)
    return float(squared @ squared)


def ledoit_wolf(moments: Moments, fourth: float) -> tuple[Float64[np.ndarray, "dim dim"], float]:
    """Return the covariance and its shrinkage, 0..1, of Ledoit and Wolf.

    Args:
        moments: Without positions.
        fourth: `fourth_powers` of all rows around the mean of `moments`.
    """
    empirical = moments.covariance(ddof=0)
    dim = len(empirical)
    # In the paper's norm |A|^2 = trace(A A^T) / dim: m = mu, d^2 = distance, b^2 = noise.
    squared = float(np.sum(empirical**2))
    mu = float(np.trace(empirical)) / dim
    distance = (squared - dim * mu**2) / dim
    noise = (fourth / moments.count - squared) / (dim * moments.count)
    noise = max(0.0, min(noise, distance))
    # One feature is its own target, and so are features that are one multiple of the identity.
    shrinkage = noise / distance if dim > 1 and noise > 0 else 0.0
    return _shrunk(empirical, mu, shrinkage), shrinkage


def oas(moments: Moments) -> tuple[Float64[np.ndarray, "dim dim"], float]:
    """Return the covariance and its shrinkage, 0..1, of oracle approximating shrinkage.

    Args:
        moments: Without positions.
    """
    empirical = moments.covariance(ddof=0)
    dim = len(empirical)
    squared = float(np.mean(empirical**2))
    mu = float(np.trace(empirical)) / dim
    distance = (moments.count + 1) * (squared - mu**2 / dim)
    shrinkage = min(1.0, (squared + mu**2) / distance) if distance > 0 else 1.0
    if dim == 1:
        # The target is the covariance itself: scikit-learn calls that no shrinkage.
        shrinkage = 0.0
    return _shrunk(empirical, mu, shrinkage), shrinkage


def _shrunk(
    empirical: Float64[np.ndarray, "dim dim"], mu: float, shrinkage: float
) -> Float64[np.ndarray, "dim dim"]:
    covariance = (1 - shrinkage) * empirical
    covariance.flat[:: len(covariance) + 1] += shrinkage * mu
    return covariance
