"""Modified z-scores: their laws, and what outliers cannot do to them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from patchlake.pipeline.maths.outliers import deviations

SCORES = st.lists(st.floats(2**-10, 2**10, width=32), min_size=1, max_size=60)


@given(SCORES)
def test_they_are_those_of_the_definition(scores):
    logarithms = np.log(np.array(scores, np.float32).astype(np.float64))
    spread = stats.median_abs_deviation(logarithms, scale="normal")
    found = deviations(np.array(scores, np.float32))
    if spread == 0:
        assert not found.any()
    else:
        # Iglewicz and Hoaglin write 0.6745; to more digits it is 0.67449.
        expected = (logarithms - np.median(logarithms)) / spread
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


@given(SCORES, st.integers(-20, 20))
def test_a_unit_changes_nothing(scores, exponent):
    one = np.array(scores, np.float32)
    # Powers of two are exact; the logarithm's own rounding is left.
    np.testing.assert_allclose(
        deviations(one), deviations(one * np.float32(2.0) ** exponent), rtol=1e-6, atol=1e-6
    )


def test_two_fifths_of_outliers_stand_out_and_no_other_does():
    random = np.random.default_rng(0)
    good = np.exp(0.1 * random.standard_normal(600))
    bad = np.exp(2 + 0.1 * random.standard_normal(400))
    found = deviations(np.concatenate([good, bad]).astype(np.float32))
    assert (found[600:] > 3.5).all()
    assert (found[:600] < 3.5).all()


def test_scores_of_zero_are_the_least_suspect():
    found = deviations(np.array([0, 1, 2, 3, 4, 50], np.float32))
    assert found.argmin() == 0
    assert np.isfinite(found).all()
    assert found.argmax() == 5


def test_no_scores_have_no_deviations():
    assert deviations(np.empty(0, np.float32)).shape == (0,)
