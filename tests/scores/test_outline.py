"""The outline of a region of interest."""

import numpy as np

from patchlake.pipeline.scores.outline import outlined


def test_a_line_of_two_pixels_is_where_a_region_ends_and_nothing_else_changes():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    inside = np.zeros((20, 30), bool)
    inside[:, :10] = True
    before = picture.copy()
    found = outlined(picture, inside)
    assert np.array_equal(picture, before)
    assert (found[:, 9:11] == (0, 200, 220)).all()
    assert np.array_equal(found[:, :9], picture[:, :9])
    assert np.array_equal(found[:, 11:], picture[:, 11:])


def test_a_region_of_everything_has_no_outline():
    picture = np.zeros((4, 4, 3), np.uint8)
    assert np.array_equal(outlined(picture, np.ones((4, 4), bool)), picture)
