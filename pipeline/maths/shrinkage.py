"""Covariances shrunk towards a multiple of the identity, from statistics of some images at a time.

    Sigma = (1 - s) S + s mu I,   S = scatter / count,   mu = trace(S) / dim

Two choices of s: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", Journal of Multivariate Analysis 88, 2004 (lemma 3.2 to 3.5); Chen, Wiesel, Eldar and
Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal Processing
58, 2010, Eq. 23 (OAS). Both are computed as scikit-learn does it: its OAS leaves out the factor
2 / dim of Eq. 23, and its Ledoit-Wolf takes centred rows.

Ledoit-Wolf needs the sum of the fourth powers of the distances to the final mean, which takes a
second pass over the rows. When rows join or leave later, no pass has to be made again: `Powers` can
be moved to another mean, exactly. For that, a vector of third powers is kept beside the fourth.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from patchlake.pipeline.maths.gaussian import Moments


@dataclass(frozen=True)
class Powers:
    """Sums over rows, with u = x - mean: `third` is that of |u|^2 u, `fourth` that of |u|^4."""

    third: Float64[np.ndarray, " dim"]
    fourth: float

    @classmethod
    def of(cls, rows: Float[np.ndarray, "rows dim"], mean: Float64[np.ndarray, " dim"]) -> "Powers":
        """Return the sums of some of the rows, about the mean of all."""
        centred = rows - mean
        squared = np.einsum("nd,nd->n", centred, centred)
        return cls(np.einsum("n,nd->d", squared, centred), float(squared @ squared))

    def __add__(self, other: "Powers") -> "Powers":
        """Return the sums of the rows of both; they must be about the same mean."""
        return Powers(self.third + other.third, self.fourth + other.fourth)

    def __sub__(self, other: "Powers") -> "Powers":
        """Return the sums without the rows of the other; they must be about the same mean."""
        return Powers(self.third - other.third, self.fourth - other.fourth)

    def about(self, moments: Moments, mean: Float64[np.ndarray, " dim"]) -> "Powers":
        """Return the sums of the same rows about another mean.

        With d the difference of the means, |u - d|^2 (u - d) and |u - d|^4 are multiplied out; the
        terms with the sum of u vanish, because that is zero.

        Args:
            moments: Those of the rows, whose mean is the one that these sums are about.
            mean: The other mean.
        """
        shift = mean - moments.mean
        length = float(shift @ shift)
        turned = np.einsum("de,e->d", moments.scatter, shift)
        trace = float(np.trace(moments.scatter))
        third = self.third - 2 * turned - (trace + moments.count * length) * shift
        fourth = (
            self.fourth
            - 4 * float(self.third @ shift)
            + 4 * float(shift @ turned)
            + 2 * trace * length
            + moments.count * length**2
        )
        return Powers(third, fourth)


def ledoit_wolf(moments: Moments, fourth: float) -> tuple[Float64[np.ndarray, "dim dim"], float]:
    """Return the covariance and its shrinkage, 0..1, of Ledoit and Wolf.

    Args:
        moments: Those of all rows, without an axis of positions.
        fourth: That of `Powers`, of all rows about the mean of `moments`.
    """
    empirical = moments.covariance(ddof=0)
    dim = len(empirical)
    # In the paper's norm |A|^2 = trace(A A^T) / dim: m = mu, d^2 = distance, b^2 = noise.
    squared = float(np.sum(empirical**2))
    mu = float(np.trace(empirical)) / dim
    distance = (squared - dim * mu**2) / dim
    noise = (fourth / moments.count - squared) / (dim * moments.count)
    noise = max(0.0, min(noise, distance))
    # A single feature needs no shrinking, nor does a covariance that is a multiple of the identity.
    shrinkage = noise / distance if dim > 1 and noise > 0 else 0.0
    return _shrunk(empirical, mu, shrinkage), shrinkage


def oas(moments: Moments) -> tuple[Float64[np.ndarray, "dim dim"], float]:
    """Return the covariance and its shrinkage, 0..1, of oracle approximating shrinkage.

    Args:
        moments: Those of all rows, without an axis of positions.
    """
    empirical = moments.covariance(ddof=0)
    dim = len(empirical)
    squared = float(np.mean(empirical**2))
    mu = float(np.trace(empirical)) / dim
    distance = (moments.count + 1) * (squared - mu**2 / dim)
    shrinkage = min(1.0, (squared + mu**2) / distance) if distance > 0 else 1.0
    if dim == 1:
        # The target is the covariance itself; scikit-learn returns 0 for that.
        shrinkage = 0.0
    return _shrunk(empirical, mu, shrinkage), shrinkage


def _shrunk(
    empirical: Float64[np.ndarray, "dim dim"], mu: float, shrinkage: float
) -> Float64[np.ndarray, "dim dim"]:
    covariance = (1 - shrinkage) * empirical
    covariance.flat[:: len(covariance) + 1] += shrinkage * mu
    return covariance
