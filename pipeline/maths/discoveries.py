"""Which of many tests are discoveries: the false discovery rate is held.

Benjamini and Hochberg, "Controlling the False Discovery Rate: a Practical and Powerful Approach to
Multiple Testing", J. R. Stat. Soc. B 57 (1995), procedure (1). What differs: a level `q k / m` is
rounded to the p-values' own type before it is compared. 1/1000 as float32 is above 1/1000, and
would miss the level that it is equal to; levels are thereby raised by 6e-8 of themselves at most.
"""

import numpy as np
from jaxtyping import Bool, Float


def largest_discovered(p_values: Float[np.ndarray, " tests"], q: float) -> float | None:
    """Return the largest p-value that is a discovery; None if none is.

    It is the largest p-value `p` with `p <= q k / m`, where `k` of the `m` p-values are `<= p`:
    ties are discoveries together or not at all. Time is O(tests log tests), memory some 30 bytes a
    test.

    Args:
        p_values: Of all tests, 0 to 1, in any order.
        q: Share of false ones among the discoveries, in expectation; above 0, below 1.

    Raises:
        ValueError: if a p-value is no number from 0 to 1, or `q` is out of range.
    """
    if not 0 < q < 1:
        raise ValueError(f"q is {q}; it is a share above 0 and below 1")
    if len(p_values) == 0:
        return None
    ordered = np.sort(p_values)
    # NaN is last.
    if not (ordered[0] >= 0 and ordered[-1] <= 1):
        raise ValueError(f"p-values are from {ordered[0]} to {ordered[-1]}, and not within 0 and 1")
    # Among equal p-values the last one has the rank that counts, and the highest level.
    levels = (q * np.arange(1, len(ordered) + 1) / len(ordered)).astype(ordered.dtype)
    below = np.flatnonzero(ordered <= levels)
    return float(ordered[below[-1]]) if len(below) else None


def discoveries(p_values: Float[np.ndarray, " tests"], q: float) -> Bool[np.ndarray, " tests"]:
    """Return which tests are discoveries, in the order of the p-values.

    Args and errors as of `largest_discovered`.
    """
    largest = largest_discovered(p_values, q)
    if largest is None:
        return np.zeros(len(p_values), bool)
    found: np.ndarray = p_values <= p_values.dtype.type(largest)
    return found


def fewest_discoveries(smallest: float, tests: int, q: float) -> int:
    """Return how many discoveries there are at the least, if there is one.

    `k` discoveries take a p-value that is at most `q k / m`. So of `m` tests of which no p-value
    can be below `smallest` there are `smallest m / q` discoveries or none, and where that is more
    than `m`, which is where `smallest > q`, never one.
    """
    return max(1, int(np.ceil(smallest * tests / q)))
