"""Benjamini and Hochberg: against the definition, scipy, and what must hold of any p-values."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from patchlake.pipeline.maths.discoveries import (
    discoveries,
    fewest_discoveries,
    largest_discovered,
)

# Many ties, as conformal p-values have them, and any others.
conformal = st.integers(1, 20).map(lambda rank: rank / 20)
p_values = st.lists(conformal | st.floats(0, 1, width=32), max_size=60)
rates = st.sampled_from([0.01, 0.05, 0.1, 0.5, 0.99])


def _by_definition(p: np.ndarray, q: float) -> np.ndarray:
    """Reject the k smallest for the largest k of which the k-th is at most q k / m."""
    order = np.argsort(p, kind="stable")
    for k in range(len(p), 0, -1):
        if p[order[k - 1]] <= p.dtype.type(q * k / len(p)):
            found = np.zeros(len(p), bool)
            found[order[:k]] = True
            return found
    return np.zeros(len(p), bool)


@given(p_values, rates, st.sampled_from([np.float32, np.float64]))
def test_they_are_those_of_the_definition(values, q, kind):
    p = np.array(values, kind)
    np.testing.assert_array_equal(discoveries(p, q), _by_definition(p, q))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("q", [0.02, 0.1, 0.3])
def test_they_are_those_of_scipy(seed: int, q: float):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(400), rng.random(100) ** 6])
    rng.shuffle(p)
    found = discoveries(p, q)
    np.testing.assert_array_equal(found, false_discovery_control(p) <= q)
    assert 0 < found.sum() < len(p)


@given(p_values, rates, st.randoms(use_true_random=False))
def test_order_does_not_count_and_ties_go_together(values, q, random):
    p = np.array(values, np.float32)
    found = discoveries(p, q)
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_array_equal(discoveries(p[order], q), found[order])
    assert not set(p[found]) & set(p[~found])
    # What is discovered is below what is not.
    assert found.all() or not found.any() or p[found].max() < p[~found].min()


@given(p_values, st.tuples(rates, rates), st.integers(0, 59), st.floats(0, 1))
def test_a_higher_rate_and_smaller_p_values_discover_no_less(values, two, at, by):
    p = np.array(values, np.float32)
    low, high = sorted(two)
    found = discoveries(p, low)
    assert not (found & ~discoveries(p, high)).any()
    if len(p):
        p[at % len(p)] *= np.float32(by)
        assert not (found & ~discoveries(p, low)).any()


@given(p_values, rates)
def test_what_is_the_largest_is_within_its_level(values, q):
    p = np.array(values, np.float32)
    largest = largest_discovered(p, q)
    if largest is None:
        assert not discoveries(p, q).any()
    else:
        count = int((p <= np.float32(largest)).sum())
        assert largest <= q * count / len(p) * (1 + 2**-23) + 2**-149
        assert discoveries(p, q).sum() == count


def test_a_p_value_that_is_equal_to_its_level_is_discovered():
    """1/1000 in float32 is above 1/1000."""
    p = np.full(100, 1, np.float32)
    p[7] = 1 / 1000
    assert Fraction(float(p[7])) > Fraction(1, 1000)
    assert discoveries(p, 0.1).tolist() == [row == 7 for row in range(100)]


@given(st.integers(1, 30), st.integers(1, 300), st.sampled_from([0.05, 0.1, 0.2, 0.45]))
def test_where_no_p_value_is_smaller_there_are_so_many_discoveries_or_none(parts, tests, q):
    smallest = 1 / (parts + 1)
    fewest = fewest_discoveries(smallest, tests, q)
    p = np.ones(tests)
    p[: fewest - 1] = smallest * (1 + 1e-9)
    if fewest > tests:
        assert not discoveries(p, q).any()
    else:
        assert not discoveries(p, q).any()
        p[:fewest] = smallest * (1 - 1e-9)
        assert discoveries(p, q).sum() == fewest


@pytest.mark.parametrize("values", [[0.5, 1.5], [-0.1, 0.5], [np.nan, 0.5], [np.inf]])
def test_what_is_no_p_value_is_refused(values):
    with pytest.raises(ValueError, match="not within 0 and 1"):
        discoveries(np.array(values), 0.1)


@pytest.mark.parametrize("q", [0.0, 1.0, -1.0, float("nan")])
def test_what_is_no_share_is_refused(q):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        discoveries(np.array([0.5]), q)


def test_the_false_discovery_rate_is_held_where_calibration_is_shared():
    """Bates et al. (2023), theorem 2: conformal p-values of one calibration set."""
    rng = np.random.default_rng(1)
    q, good, bad, shares = 0.2, 180, 20, []
    for _ in range(400):
        calibration = np.sort(rng.standard_normal(200))
        scores = np.concatenate([rng.standard_normal(good), rng.standard_normal(bad) + 4])
        above = len(calibration) - np.searchsorted(calibration, scores)
        found = discoveries(((1 + above) / (len(calibration) + 1)).astype(np.float32), q)
        shares.append(found[:good].sum() / max(1, found.sum()))
    # q times the share of good ones is 0.18; the mean of 400 varies by about 0.007.
    assert 0.1 < np.mean(shares) < 0.2
