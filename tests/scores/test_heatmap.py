"""Heatmaps: one scale, colour above its low end only, at the photo's shape; outlines."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from patchlake.pipeline.images.pictures import MAX_SIDE, picture_size
from patchlake.pipeline.scores.heatmap import ColourScale, blended, outline, overlay, to_jpeg

distances = st.floats(0, 1000, width=32)
SCALE = ColourScale(2.0, 3.0)


def random_photo(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@given(arrays.arrays(np.float32, (3, 4), elements=distances))
def test_strength_rises_from_0_at_low_to_1_at_high(frame):
    strength = SCALE.strength(frame)
    assert strength.dtype == np.float32
    assert (strength[frame <= 2] == 0).all()
    assert (strength[frame >= 3] == 1).all()
    between = (frame > 2) & (frame < 3)
    np.testing.assert_allclose(strength[between], frame[between] - 2, atol=1e-6)


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=distances))
def test_at_most_one_normal_image_in_twenty_is_coloured(peaks):
    scale = ColourScale.of_normal(peaks)
    assert (peaks > scale.low).sum() <= np.ceil(len(peaks) / 20)
    assert scale.low <= peaks.max()
    assert scale.high > scale.low


def test_colour_is_full_at_one_and_a_half_times_the_low_end():
    scale = ColourScale.of_normal(np.full(10, 4, np.float32))
    assert scale == ColourScale(4.0, 6.0)


def test_peaks_that_are_all_zero_still_make_a_scale():
    scale = ColourScale.of_normal(np.zeros(5, np.float32))
    np.testing.assert_array_equal(
        scale.strength(np.array([[0, 0.5, 2]], np.float32)), np.array([[0, 0.5, 1]], np.float32)
    )


def test_a_normal_map_leaves_the_photo():
    photo = random_photo(30, 20)

    picture = overlay(photo, np.full((20, 30), 2.0, np.float32), SCALE)

    assert (picture.dtype, picture.shape) == (np.uint8, (20, 30, 3))
    np.testing.assert_array_equal(picture, photo)


def test_only_what_is_above_the_low_end_is_coloured():
    photo = random_photo(30, 20)
    before = photo.copy()
    frame = np.zeros((20, 30), np.float32)
    # Two spots, and what is between them.
    frame[4:9, 10:16] = 10
    frame[15, 25] = 10

    picture = overlay(photo, frame, SCALE)

    is_coloured = (picture != photo).any(axis=2)
    np.testing.assert_array_equal(is_coloured, frame > 0)
    # Three quarters of pale yellow, the far end of the scale.
    expected = 0.25 * photo.astype(float) + 0.75 * np.array([255, 245, 150])
    np.testing.assert_allclose(picture[4:9, 10:16], expected[4:9, 10:16], rtol=0, atol=0.5)
    np.testing.assert_array_equal(photo, before)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_photo_of_a_heatmap_keeps_its_shape_and_no_side_exceeds_512(width, height):
    rows, columns = picture_size(width, height)
    longest = max(width, height)
    assert max(rows, columns) == min(longest, MAX_SIDE)
    shrink = max(1, longest / MAX_SIDE)
    for side, wanted in ((rows, height / shrink), (columns, width / shrink)):
        # Half a pixel of rounding; a sliver keeps one pixel.
        assert abs(side - wanted) <= 0.5 or side == 1


@given(
    arrays.arrays(np.uint8, (7, 9, 3)),
    arrays.arrays(np.float32, (7, 9), elements=st.floats(0, 8, width=32)),
)
def test_the_table_of_colours_is_within_two_levels_of_the_formula(photo, frame):
    exact = blended(photo, SCALE.strength(frame))
    assert np.abs(overlay(photo, frame, SCALE).astype(int) - exact).max() <= 2


@pytest.mark.parametrize("channel", range(3))
def test_every_strength_on_every_level_is_within_two_levels(channel):
    photo = np.full((256, 4001, 3), 90, np.uint8)
    photo[..., channel] = np.arange(256, dtype=np.uint8)[:, None]
    frame = np.repeat(np.linspace(1.9, 4.2, 4001, dtype=np.float32)[None], 256, axis=0)
    exact = blended(photo, SCALE.strength(frame))
    assert np.abs(overlay(photo, frame, SCALE).astype(int) - exact).max() <= 2


areas = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(areas, st.sampled_from([0, 128, 255]))
def test_an_outline_is_white_inside_of_an_area_and_black_beside_the_white(marked, level):
    picture = np.full((*marked.shape, 3), level, np.uint8)

    outline(picture, marked)

    # Beyond the picture nothing is marked.
    beyond = np.pad(marked, 1)
    neighbours = np.lib.stride_tricks.sliding_window_view(beyond, (3, 3))
    white = marked & ~neighbours.all(axis=(2, 3))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(white, 1), (3, 3))
    black = around.any(axis=(2, 3)) & ~white
    expected = np.full_like(picture, level)
    expected[white], expected[black] = 255, 0
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("level", [0, 255])
def test_an_area_that_fills_a_picture_is_seen_on_black_and_on_white(level):
    picture = np.full((20, 30, 3), level, np.uint8)
    outline(picture, np.ones((20, 30), bool))
    assert set(np.unique(picture)) == {0, 255}


def test_jpeg_decodes_to_nearly_the_same_picture():
    # Of a picture as they are: smooth, with a sharp edge of colour.
    slope = np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)
    photo = np.stack([slope, slope[::-1], slope[:, ::-1]], axis=-1)
    frame = np.zeros((96, 128), np.float32)
    frame[30:60, 40:90] = 3
    picture = overlay(photo, frame, SCALE)
    with Image.open(io.BytesIO(to_jpeg(picture))) as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (128, 96))
        off = np.abs(np.asarray(decoded).astype(int) - picture)
    assert off.mean() < 1.5
