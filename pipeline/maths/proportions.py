"""Intervals of a share of independent things."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import betaincinv

# 95 %: this much is left out at each side.
_TAIL = 0.025


def exact_intervals(
    found: Int64[np.ndarray, " shares"], among: Int64[np.ndarray, " shares"]
) -> tuple[Float64[np.ndarray, " shares"], Float64[np.ndarray, " shares"]]:
    """Return the lower and upper ends of exact intervals of 95 % (Clopper and Pearson, 1934).

    Args:
        found: How many there are, 0 to `among`.
        among: Of how many; where that is 0, the interval is from 0 to 1.
    """
    missed = among - found
    low, high = np.zeros(len(found)), np.ones(len(found))
    some, most = found > 0, missed > 0
    low[some] = betaincinv(found[some], missed[some] + 1.0, _TAIL)
    high[most] = betaincinv(found[most] + 1.0, missed[most], 1 - _TAIL)
    return low, high
