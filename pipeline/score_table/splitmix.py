"""Numbers that are as good as random, and always the same of the same number.

Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: the output
function of SplitMix64.
"""

import numpy as np


def mixed(values: np.ndarray) -> np.ndarray:
    """Return another uint64 for each, different ones for different ones: each bit moves all."""
    found = values + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_all: np.ndarray = found ^ (found >> np.uint64(31))
    return mixed_all
