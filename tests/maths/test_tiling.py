"""Tiles cover an axis, overlap enough, and say of each place one thing in all."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patchlake.pipeline.maths.tiling import tile_starts, tile_weights


@st.composite
def axes(draw):
    """(length, size, overlap) of an axis and its tiles."""
    size = draw(st.integers(1, 40))
    return draw(st.integers(size, 300)), size, draw(st.integers(0, size - 1))


@given(axes())
def test_tiles_cover_the_axis_and_overlap_enough(axis):
    length, size, overlap = axis
    starts = tile_starts(*axis)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(0 < b - a <= size - overlap for a, b in pairwise(starts))


@given(axes())
def test_there_are_no_more_tiles_than_it_takes(axis):
    length, size, overlap = axis
    fewer = len(tile_starts(*axis)) - 1
    # One tile less would leave a gap, or too little overlap.
    assert fewer == 0 or size + (fewer - 1) * (size - overlap) < length


@given(axes())
def test_starts_are_evenly_spread(axis):
    steps = np.diff(tile_starts(*axis))
    assert steps.size == 0 or steps.max() - steps.min() <= 1


@given(axes(), st.sampled_from([1, 2, 4]))
def test_weights_of_a_place_sum_to_one(axis, cells):
    length, size, _ = axis
    total = np.zeros(length * cells)
    for start, weights in zip(tile_starts(*axis), tile_weights(*axis, cells), strict=True):
        assert weights.min() >= 0
        total[start * cells : (start + size) * cells] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


@given(axes(), st.sampled_from([1, 2, 4]))
def test_a_place_that_one_tile_shows_is_that_tile_s_alone(axis, cells):
    length, size, _ = axis
    shown = np.zeros(length * cells, int)
    starts = tile_starts(*axis)
    for start in starts:
        shown[start * cells : (start + size) * cells] += 1
    for start, weights in zip(starts, tile_weights(*axis, cells), strict=True):
        alone = shown[start * cells : (start + size) * cells] == 1
        assert (weights[alone] == 1).all()


@given(axes(), st.sampled_from([1, 2, 4]))
def test_weights_are_the_same_from_either_end(axis, cells):
    """Of an axis whose tiles lie so."""
    length, size, _ = axis
    starts = tile_starts(*axis)
    assume(starts == [length - size - start for start in starts[::-1]])
    weights = tile_weights(*axis, cells)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=0, atol=1e-12)


def test_the_end_of_a_tile_says_nothing_and_the_border_of_the_image_does():
    """Two tiles of 16 cells that share 8: three of these are the other tile's, two are a ramp."""
    first, second = tile_weights(24, 16, 8, 1)
    assert first.tolist() == [1] * 8 + [1, 1, 1, 0.75, 0.25, 0, 0, 0]
    assert second.tolist() == first[::-1].tolist()


@pytest.mark.parametrize("axis", [(8, 16, 4), (16, 8, 8), (16, 8, -1), (0, 0, 0)])
def test_tiles_that_cannot_cover_an_axis_are_refused(axis):
    with pytest.raises(ValueError, match="do not cover"):
        tile_starts(*axis)
