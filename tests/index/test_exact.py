"""Exact search, against float64 distances to every bank row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.index.exact import ExactSearch


def random_bank(rng, count, dim, offset):
    return (rng.normal(size=(count, dim)) + offset).astype(np.float32)


@st.composite
def searches(draw):
    """A bank with duplicates, queries near, far from and in it, and k."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k = draw(st.sampled_from([1, 3, 9]))
    count, dim = draw(st.integers(k, 60)), draw(st.integers(1, 40))
    bank = random_bank(rng, count, dim, draw(st.sampled_from([0, 1e3, -1e5])))
    bank = bank[rng.integers(draw(st.integers(1, count)), size=count)]
    queries = bank[rng.integers(count, size=draw(st.integers(1, 12)))].copy()
    moved = rng.random(len(queries)) < 0.7
    away = rng.normal(size=queries.shape) * draw(st.sampled_from([1e-3, 1, 1e4]))
    queries[moved] += away[moved].astype(np.float32)
    return bank, queries, k


def brute_force(bank, queries, k):
    """Sorted by distance, then row."""
    squared = ((queries[:, None].astype(np.float64) - bank) ** 2).sum(axis=2)
    rows = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, rows, axis=1)), rows


@given(searches())
def test_equals_brute_force_in_float64(search):
    bank, queries, k = search
    expected, expected_rows = brute_force(bank, queries, k)

    distances, rows = ExactSearch.over(bank).nearest(queries, k)

    assert (distances.dtype, rows.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=0)


@given(searches())
def test_a_bank_row_is_at_distance_zero_and_the_lowest_of_its_equals(search):
    bank, _, _ = search
    distances, rows = ExactSearch.over(bank).nearest(bank, 1)
    assert (distances == 0).all()
    equal = (bank[:, None] == bank).all(axis=2)
    np.testing.assert_array_equal(rows[:, 0], equal.argmax(axis=1))


@given(st.integers(0, 2**32), st.integers(9, 60))
def test_equal_distances_go_to_the_lowest_rows(seed, count):
    rng = np.random.default_rng(seed)
    bank = rng.integers(0, 3, size=(count, 2)).astype(np.float32) + 1000
    queries = rng.integers(0, 3, size=(5, 2)).astype(np.float32) + 1000
    for k in (1, 3, 9):
        _, rows = ExactSearch.over(bank).nearest(queries, k)
        np.testing.assert_array_equal(rows, brute_force(bank, queries, k)[1])


@pytest.mark.parametrize("k", [1, 9])
def test_a_query_has_the_same_answer_alone_and_in_any_block(k):
    # 20,000 x 2,000 distances are more than two of the blocks that are looked at together.
    rng = np.random.default_rng(0)
    search = ExactSearch.over(random_bank(rng, 20_000, 24, 1e3))
    queries = random_bank(rng, 2000, 24, 1e3)

    distances, rows = search.nearest(queries, k)

    # 838 queries make a block.
    for number in (0, 1, 400, 837, 838, 839, 1675, 1676, 1677, 1999):
        alone, alone_rows = search.nearest(queries[number : number + 1], k)
        np.testing.assert_array_equal(alone[0], distances[number])
        np.testing.assert_array_equal(alone_rows[0], rows[number])
    expected, expected_rows = brute_force(search.bank, queries[835:841], k)
    np.testing.assert_array_equal(rows[835:841], expected_rows)
    np.testing.assert_allclose(distances[835:841], expected, rtol=1e-6)


@given(searches(), st.data())
def test_ignored_rows_are_as_if_they_were_not_in_the_bank(search, data):
    bank, queries, k = search
    most = len(bank) - k
    ignored = data.draw(st.sets(st.integers(0, len(bank) - 1), max_size=most).map(sorted))
    kept = np.setdiff1d(np.arange(len(bank)), ignored)
    expected, positions = brute_force(bank[kept], queries, k)

    distances, rows = ExactSearch.over(bank).nearest(queries, k, ignore=np.array(ignored, np.int64))

    np.testing.assert_array_equal(rows, kept[positions])
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=0)


def test_no_queries_have_no_neighbours():
    search = ExactSearch.over(np.eye(4, dtype=np.float32))
    for k in (1, 3):
        distances, rows = search.nearest(np.empty((0, 4), np.float32), k)
        assert distances.shape == rows.shape == (0, k)


def test_vectors_are_bank_rows_in_the_shape_asked_for():
    bank = np.arange(12, dtype=np.float32).reshape(6, 2)
    search = ExactSearch.over(bank)
    assert search.size == 6
    np.testing.assert_array_equal(
        search.vectors(np.array([[5, 0], [2, 2]])), bank[[5, 0, 2, 2]].reshape(2, 2, 2)
    )


def test_more_neighbours_than_rows_and_other_dimensions_are_named():
    search = ExactSearch.over(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"5 neighbours of queries of 3 .* 4 rows of 3"):
        search.nearest(np.zeros((1, 3), np.float32), 5)
    with pytest.raises(ValueError, match=r"4 neighbours of queries of 3 .* 3 rows of 3"):
        search.nearest(np.zeros((1, 3), np.float32), 4, ignore=np.array([2]))
    with pytest.raises(ValueError, match=r"1 neighbours of queries of 2 .* 4 rows of 3"):
        search.nearest(np.zeros((1, 2), np.float32), 1)


@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23, 1e-30])
def test_rows_whose_squares_are_too_small_for_float32_are_told_apart(scale):
    rng = np.random.default_rng(0)
    bank = (scale * rng.normal(size=(60, 24))).astype(np.float32)
    queries = (scale * rng.normal(size=(40, 24))).astype(np.float32)
    _, rows = ExactSearch.over(bank).nearest(queries, 3)
    np.testing.assert_array_equal(rows, brute_force(bank, queries, 3)[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_query_that_is_not_finite_is_refused(value, place):
    bank = np.array([[0, 0], [3, 3], [1, 1]], np.float32)
    queries = bank.copy()
    queries[place, 0] = value
    with pytest.raises(ValueError, match="not finite"), np.errstate(invalid="ignore"):
        ExactSearch.over(bank).nearest(queries, 1)
