"""The sieve's own pieces; what it lets through is tested with the search (`test_pruned`)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.index.sieve import _flatnonzero


@given(st.integers(0, 70), st.integers(0, 70), st.floats(0, 1), st.integers(0, 9))
def test_few_are_found_as_numpy_finds_them(queries, width, share, seed):
    mask = np.random.default_rng(seed).random((queries, width)) < share
    np.testing.assert_array_equal(_flatnonzero(mask), np.flatnonzero(mask))
