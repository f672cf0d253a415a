"""Searches near a place, against a loop that measures every row within the radius."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.index import positioned
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.place_lists import PlaceLists
from patchlake.pipeline.index.positioned import PositionedSearch, reaches_of
from patchlake.pipeline.index.squares import Squares
from tests.index.test_exact import random_bank

# Which way a bank is searched in: values that may be scanned.
WAYS = {PlaceLists: np.inf, Squares: -1}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(positioned, "_SCANNED", WAYS[request.param])
    return request.param


def searched(way, *arguments):
    """A search in one way, in a test that hypothesis runs often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positioned, "_SCANNED", WAYS[way])
        found = PositionedSearch.over(*arguments)
    assert isinstance(found._rows, way)
    return found


def brute_force(bank, queries, radii, k):
    """The k nearest rows of each query by distance, then row; `radii` are those of the pairs."""
    distances, rows = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for number, query in enumerate(queries.astype(np.float64)):
        reach = np.sort(radii[number])[k - 1]
        among = np.flatnonzero(radii[number] <= reach)
        squared = ((bank[among] - query) ** 2).sum(axis=1)
        order = np.lexsort((among, squared))[:k]
        distances[number], rows[number] = np.sqrt(squared[order]), among[order]
    return distances, rows


def away(places, of_rows, radius):
    """How far each row is from each query, in patches; what is within the radius counts alike."""
    return np.maximum(np.abs(places[:, None] - of_rows).max(axis=2), radius)


def placed(rng, grid, count):
    return rng.integers(0, grid, size=(count, 2))


@st.composite
def searches(draw):
    """A bank with duplicates, queries near, far from and in it, their places, a radius and k."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    k = draw(st.sampled_from([1, 3, 9]))
    count, dim = draw(st.integers(k, 80)), draw(st.sampled_from([2, 40, 70]))
    bank = random_bank(rng, count, dim, draw(st.sampled_from([0, 1e3])))
    bank = bank[rng.integers(draw(st.integers(1, count)), size=count)]
    queries = bank[rng.integers(count, size=draw(st.integers(1, 30)))].copy()
    moved = rng.random(len(queries)) < 0.7
    noise = rng.normal(size=queries.shape) * draw(st.sampled_from([1e-3, 1, 1e3]))
    queries[moved] += noise[moved].astype(np.float32)
    of_rows = placed(rng, grid, count)
    if draw(st.booleans()):
        # All in a corner: most places have none nearby.
        of_rows //= 3
    radius = draw(st.integers(0, 6))
    return bank, of_rows, grid, radius, queries, placed(rng, grid, len(queries)), k


@pytest.mark.parametrize("kind", WAYS)
@given(searches(), st.data())
def test_equals_brute_force_within_the_radius(kind, search, data):
    bank, of_rows, grid, radius, queries, places, k = search
    drawn = data.draw(st.sets(st.integers(0, len(bank) - 1), max_size=len(bank) - k).map(sorted))
    ignore = np.array(drawn, np.int64)
    kept = np.setdiff1d(np.arange(len(bank)), ignore)
    expected, among = brute_force(bank[kept], queries, away(places, of_rows[kept], radius), k)

    found = searched(kind, bank, of_rows, grid, radius)
    distances, rows = found.at(places).nearest(queries, k, ignore=ignore)

    np.testing.assert_array_equal(rows, kept[among])
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", WAYS)
@given(searches())
def test_a_radius_that_covers_the_grid_is_exact_search_to_the_bit(kind, search):
    bank, of_rows, grid, _, queries, places, k = search
    found = searched(kind, bank, of_rows, grid, max(grid) - 1)
    for ours, theirs in zip(
        found.at(places).nearest(queries, k),
        ExactSearch.over(bank).nearest(queries, k),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("spread", [0.1, 0.0])
def test_the_ways_agree_on_a_large_bank_and_any_queries_beside_one(monkeypatch, k, spread):
    # Clustered, so that the bounds rule something out, or all alike, so that they do not.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 70)) * 10
    grid, count = (28, 28), 12_000
    bank = (centres[rng.integers(40, size=count)] + rng.normal(size=(count, 70)) * spread).astype(
        np.float32
    )
    # More than are compared together in a square.
    places = np.tile(np.stack(np.divmod(np.arange(784), 28), axis=1), (20, 1))
    queries = (bank[rng.integers(count, size=len(places))] + rng.normal(size=(1, 70)) * 0.1).astype(
        np.float32
    )
    some = rng.permutation(len(places))[:50]
    of_rows, answers = placed(rng, grid, count), []
    for way_, scanned in WAYS.items():
        monkeypatch.setattr(positioned, "_SCANNED", scanned)
        found = PositionedSearch.over(bank, of_rows, grid, 3)
        assert isinstance(found._rows, way_)
        if spread:
            answers.append(found.at(places).nearest(queries, k))
            np.testing.assert_array_equal(
                found.at(places[some]).nearest(queries[some], k)[1], answers[-1][1][some]
            )
        else:
            answers.append(found.at(places[some]).nearest(queries[some], k))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)
    if spread:
        radii = away(places[some], of_rows, 3)
        np.testing.assert_array_equal(
            answers[0][1][some], brute_force(bank, queries[some], radii, k)[1]
        )


def test_of_few_dimensions_all_that_is_near_is_ranked(monkeypatch):
    monkeypatch.setattr(positioned, "_SCANNED", -1)
    rng = np.random.default_rng(1)
    bank, queries = random_bank(rng, 3000, 64, 0), random_bank(rng, 300, 64, 0)
    of_rows, places = placed(rng, (9, 30), 3000), placed(rng, (9, 30), 300)
    found = PositionedSearch.over(bank, of_rows, (9, 30), 2)
    assert isinstance(found._rows, Squares)
    assert found._rows.coordinates is None
    expected = brute_force(bank, queries, away(places, of_rows, 2), 3)[1]
    np.testing.assert_array_equal(found.at(places).nearest(queries, 3)[1], expected)


def test_a_larger_share_of_a_larger_bank_is_no_longer_scanned():
    rng = np.random.default_rng(0)
    bank, of_rows = random_bank(rng, 6000, 150, 0), placed(rng, (28, 28), 6000)
    ways = [type(PositionedSearch.over(bank, of_rows, (28, 28), r)._rows) for r in (0, 3, 7)]
    assert ways == [PlaceLists, PlaceLists, Squares]


def test_a_place_without_rows_reaches_as_far_as_it_has_to():
    of_rows = np.array([[0, 0], [0, 0], [0, 3]])
    np.testing.assert_array_equal(reaches_of(of_rows, (2, 4), 0, 1)[0], [0, 1, 1, 0])
    np.testing.assert_array_equal(reaches_of(of_rows, (2, 4), 0, 3), [[3, 2, 2, 3]] * 2)
    np.testing.assert_array_equal(reaches_of(of_rows, (2, 4), 2, 1), np.full((2, 4), 2))


def test_no_queries_have_no_neighbours(way):
    found = PositionedSearch.over(np.eye(4, dtype=np.float32), np.zeros((4, 2), int), (2, 2), 1)
    nothing = found.at(np.empty((0, 2), int)).nearest(np.empty((0, 4), np.float32), 3)
    assert nothing[0].shape == nothing[1].shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_refused(way, value):
    bank = np.array([[0, 0], [3, 3], [1, 1]], np.float32)
    queries = bank.copy()
    queries[1, 0] = value
    found = PositionedSearch.over(bank, np.zeros((3, 2), int), (1, 1), 1)
    with pytest.raises(ValueError, match="not finite"), np.errstate(invalid="ignore"):
        found.at(np.zeros((3, 2), int)).nearest(queries, 1)


def test_what_does_not_fit_is_named(way):
    bank, of_rows = np.zeros((4, 3), np.float32), np.zeros((4, 2), int)
    with pytest.raises(ValueError, match="3 places do not fit 4 bank rows"):
        PositionedSearch.over(bank, of_rows[:3], (2, 2), 1)
    with pytest.raises(ValueError, match="a grid of 2 x 2 patches"):
        PositionedSearch.over(bank, of_rows + 2, (2, 2), 1)
    found = PositionedSearch.over(bank, of_rows, (2, 2), 1).at(of_rows[:1])
    with pytest.raises(ValueError, match=r"4 neighbours of queries of 3 .* 3 rows of 3"):
        found.nearest(np.zeros((1, 3), np.float32), 4, ignore=np.array([2]))
    with pytest.raises(ValueError, match=r"1 neighbours of queries of 2 .* 4 rows of 3"):
        found.nearest(np.zeros((1, 2), np.float32), 1)


def test_vectors_are_bank_rows(way):
    bank = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = PositionedSearch.over(bank, np.zeros((6, 2), int), (1, 1), 0)
    assert found.size == found.at(np.zeros((1, 2), int)).size == 6
    wanted = np.array([[5, 0], [2, 2]])
    for search in (found, found.at(np.zeros((1, 2), int))):
        np.testing.assert_array_equal(search.vectors(wanted), bank[wanted])
