"""Shrinkage from statistics in parts: scikit-learn's, which holds all rows."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf

from patchlake.pipeline.maths.gaussian import Moments, merge, whitener
from patchlake.pipeline.maths.shrinkage import Powers, ledoit_wolf, oas


@st.composite
def samples(draw):
    """Rows of any shape, offset and scale, some columns constant."""
    count, dim = draw(st.integers(2, 40)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixed = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim))
    rows = mixed * draw(st.sampled_from([1e-3, 1.0, 1e3])) + draw(st.sampled_from([0, -5, 1e4]))
    constant = rng.random(dim) < draw(st.sampled_from([0, 0.3]))
    rows[:, constant] = rows[0, constant]
    return rows.astype(np.float32)


def streamed(rows, parts=4):
    """Moments and fourth powers from two passes over parts."""
    split = [part for part in np.array_split(rows, parts) if len(part)]
    moments = reduce(merge, [Moments.of(part) for part in split])
    return moments, sum(Powers.of(part, moments.mean).fourth for part in split)


@given(rows=samples())
def test_ledoit_wolf_in_parts_is_that_of_scikit_learn(rows):
    covariance, shrinkage = ledoit_wolf(*streamed(rows))
    check(covariance, shrinkage, LedoitWolf().fit(rows.astype(np.float64)))


@given(rows=samples())
def test_oas_in_parts_is_that_of_scikit_learn(rows):
    covariance, shrinkage = oas(streamed(rows)[0])
    check(covariance, shrinkage, OAS().fit(rows.astype(np.float64)))


def check(covariance, shrinkage, expected):
    scale = np.abs(expected.covariance_).max()
    np.testing.assert_allclose(covariance, expected.covariance_, rtol=1e-6, atol=1e-9 * scale)
    assert 0 <= shrinkage <= 1
    assert shrinkage == pytest.approx(expected.shrinkage_, rel=1e-6, abs=1e-9)


def test_fewer_rows_than_features_give_a_covariance_that_can_be_whitened():
    rows = np.random.default_rng(0).standard_normal((5, 50)).astype(np.float32)
    moments, fourth = streamed(rows)
    for covariance, shrinkage in (ledoit_wolf(moments, fourth), oas(moments)):
        assert 0 < shrinkage <= 1
        precision = whitener(covariance).T @ whitener(covariance)
        np.testing.assert_allclose(precision, np.linalg.inv(covariance), rtol=1e-6, atol=1e-9)


def test_fourth_powers_of_parts_add_up_to_those_by_hand():
    rows = np.array([[3, 4], [0, 0], [0, 1]], np.float32)
    assert Powers.of(rows, np.zeros(2)).fourth == 625 + 1
    parts = Powers.of(rows[:1], np.zeros(2)) + Powers.of(rows[1:], np.zeros(2))
    assert parts.fourth == 626


def test_images_that_are_all_the_same_have_no_covariance_and_no_numbers_that_are_not_finite():
    rows = np.full((6, 3), 0.1, np.float32)
    for covariance, shrinkage in (ledoit_wolf(*streamed(rows)), oas(streamed(rows)[0])):
        np.testing.assert_array_equal(covariance, 0)
        assert np.isfinite(shrinkage)
