"""Greedy selection near places, against a loop over all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.maths.coreset import greedy
from patchlake.pipeline.maths.near_coreset import (
    Centres,
    PlacedRows,
    Start,
    covered_by,
    covering_places,
    greedy_near,
)


@st.composite
def selections(draw):
    """Integer rows, whose distances are exact in float32, with ties; their places, and a size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid, radius = (draw(st.integers(1, 5)), draw(st.integers(1, 6))), draw(st.integers(0, 3))
    count, dim = draw(st.integers(1, 90)), draw(st.integers(1, 6))
    rows = rng.integers(0, draw(st.integers(1, 50)), size=(count, dim)).astype(np.float32)
    cells = np.sort(rng.integers(grid[0] * grid[1], size=count))
    first = rng.choice(count, size=draw(st.integers(0, min(3, count))), replace=False)
    size = draw(st.integers(len(first), count))
    return PlacedRows.sorted_by(rows, cells, grid), cells, radius, size, first


def is_near(cells, others, grid, radius):
    y, x = np.divmod(cells, grid[1])
    other_y, other_x = np.divmod(others, grid[1])
    away = np.maximum(abs(y[:, None] - other_y), abs(x[:, None] - other_x))
    return away <= radius


def distances_to(placed, cells, centres, of_centres, radius):
    between = np.linalg.norm(placed.rows[:, None].astype(np.float64) - centres, axis=2)
    between[~is_near(cells, of_centres, placed.grid, radius)] = np.inf
    return between.min(axis=1, initial=np.inf)


def plain(placed, cells, radius, size, first):
    indices = list(first)
    while True:
        chosen = np.array(indices, np.int64)
        nearest = distances_to(placed, cells, placed.rows[chosen], cells[chosen], radius)
        if len(indices) == size or nearest.max() == 0:
            return chosen, nearest.max()
        indices.append(int(nearest.argmax()))


@given(selections())
def test_equals_a_loop_over_all_pairs(selection):
    placed, _, radius, size, first = selection
    expected, reached = plain(*selection)
    found = greedy_near(placed, size, radius, Start(first))
    np.testing.assert_array_equal(found.indices, expected)
    assert found.radius == pytest.approx(reached, rel=1e-6)


@given(selections(), st.data())
def test_given_centres_are_as_rows_that_were_picked_before(selection, data):
    placed, cells, radius, size, _ = selection
    count = data.draw(st.integers(0, size))
    whole = greedy_near(placed, size, radius)
    before, after = whole.indices[:count], whole.indices[count:]
    given_ = Centres(placed.rows[before], cells[before])
    found = greedy_near(placed, len(after), radius, Start(given=given_))
    np.testing.assert_array_equal(found.indices, after)
    assert found.radius == whole.radius


def test_a_radius_that_covers_the_grid_is_greedy_selection():
    # Clustered and far from zero, so that a product alone would not tell the nearest.
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(8, 20))[rng.integers(8, size=3000)] * 5 + 100).astype(np.float32)
    rows += rng.normal(size=rows.shape).astype(np.float32)
    placed = PlacedRows.sorted_by(rows, np.sort(rng.integers(12, size=3000)), (3, 4))
    found = greedy_near(placed, 200, 3, Start(np.array([7])))
    expected = greedy(rows, 200, start=7)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert found.radius == pytest.approx(float(expected.radii[-1]), rel=1e-6)


def test_many_new_centres_at_once_and_more_rows_than_a_block():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5000, 12)).astype(np.float32) + 1000
    cells = np.sort(rng.integers(2, size=5000))
    placed = PlacedRows.sorted_by(rows, cells, (1, 2))
    centres, of_centres = rng.normal(size=(300, 12)).astype(np.float32) + 1000, np.arange(300) % 2
    given_ = Centres(centres, of_centres)
    found = greedy_near(placed, 0, 0, Start(given=given_))
    assert len(found.indices) == 0
    expected = distances_to(placed, cells, centres, of_centres, 0)
    assert found.radius == pytest.approx(expected.max(), rel=1e-6)
    (row,) = greedy_near(placed, 1, 0, Start(given=given_)).indices
    assert expected[row] == pytest.approx(expected.max(), rel=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 99))
def test_covering_places_cover_with_as_few_as_can_be(rows, columns, radius, seed):
    places = covering_places(np.zeros((rows, columns), bool), radius)
    assert covered_by(places, (rows, columns), radius).all()
    side = 2 * radius + 1
    assert len(places) == -(-rows // side) * -(-columns // side)
    # And what is left of a grid of which some is covered.
    covered = np.random.default_rng(seed).random((rows, columns)) < 0.8
    more = covering_places(covered, radius)
    assert (covered | covered_by(more, (rows, columns), radius)).all()
    assert len(more) <= (~covered).sum()


def test_a_first_row_is_of_the_place_that_is_asked_for():
    placed = PlacedRows.sorted_by(
        np.zeros((6, 1), np.float32), np.array([0, 0, 1, 2, 2, 3]), (2, 2)
    )
    drawn = [
        placed.first_at(np.array([[0, 0], [1, 0]]), np.random.default_rng(n)) for n in range(30)
    ]
    assert {tuple(rows) for rows in drawn} == {(0, 3), (0, 4), (1, 3), (1, 4)}


def test_more_named_rows_than_are_asked_for_are_refused():
    placed = PlacedRows.sorted_by(np.zeros((3, 1), np.float32), np.zeros(3, np.int64), (1, 1))
    with pytest.raises(ValueError, match="1 rows cannot hold the 2"):
        greedy_near(placed, 1, 0, Start(np.array([0, 1])))
