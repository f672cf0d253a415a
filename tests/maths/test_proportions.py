"""Intervals of shares, against scipy's exact test one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from patchlake.pipeline.maths.proportions import exact_intervals


@given(st.lists(st.integers(0, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))))
def test_intervals_are_those_of_the_exact_test(pairs: list[tuple[int, int]]) -> None:
    found = np.array([k for k, _ in pairs], np.int64)
    among = np.array([n for _, n in pairs], np.int64)
    low, high = exact_intervals(found, among)
    for (k, n), one, other in zip(pairs, low, high, strict=True):
        exact = binomtest(k, n).proportion_ci(method="exact") if n else (0.0, 1.0)
        np.testing.assert_allclose([one, other], exact, rtol=1e-9, atol=1e-12)
