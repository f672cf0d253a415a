"""Which patches count: half of a cell by brute force, the nearest inside, the lowest outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchlake.pipeline.maths.interior import Interior

regions = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def shares(inside: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Of each cell, by counting pieces of pixels that no cell cuts."""
    rows, columns = grid
    fine = np.repeat(np.repeat(inside, rows, axis=0), columns, axis=1)
    height, width = inside.shape
    return fine.reshape(rows, height, columns, width).mean(axis=(1, 3))


@given(regions, grids)
def test_a_cell_is_inside_where_half_of_it_is(inside, grid):
    assert np.array_equal(Interior.of(inside).cells(grid), shares(inside, grid) >= 0.5)


@given(regions, grids)
def test_each_cell_has_the_nearest_one_inside(inside, grid):
    interior = Interior.of(inside)
    sources = interior.sources(grid)
    cells = interior.cells(grid)
    if not cells.any():
        assert set(sources.tolist()) == {int(shares(inside, grid).argmax())}
        return
    places = np.stack(np.unravel_index(np.arange(cells.size), grid), axis=1)
    held = np.flatnonzero(cells)
    away = ((places[:, None] - places[held]) ** 2).sum(axis=2)
    assert np.isin(sources, held).all()
    own = ((places - places[sources]) ** 2).sum(axis=1)
    assert np.array_equal(own, away.min(axis=1))


@given(regions, grids, st.integers(0, 99))
def test_a_map_is_lowest_outside(inside, grid, seed):
    interior = Interior.of(inside)
    values = np.random.default_rng(seed).random(grid, np.float32)
    patches, found = interior.patches(grid), interior.within(values)
    assert patches.any()
    assert np.array_equal(found[patches], values[patches])
    assert (found[~patches] == values[patches].min()).all()


@given(regions)
def test_it_travels_as_bytes(inside):
    interior = Interior.from_bytes(Interior.of(inside).to_bytes())
    assert np.array_equal(interior.pixels(), inside)
    assert interior.is_whole == inside.all()


def test_what_is_shared_cannot_be_changed():
    interior = Interior.of(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="read-only"):
        interior.pixels()[0, 0] = False
    with pytest.raises(ValueError, match="read-only"):
        interior.sources((2, 2))[0] = 1
