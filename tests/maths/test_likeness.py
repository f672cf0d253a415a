"""Look-alikes: shots of a part are found, other parts are not, in any light."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths import likeness
from patchlake.pipeline.maths.likeness import look_alikes


def photos(parts, shots, seed=0, noise=2.0):
    """Thumbnails of several shots of each part, in a light of their own."""
    rng = np.random.default_rng(seed)
    scenes = np.repeat(rng.normal(0, 30, (parts, 256)), shots, axis=0)
    light = rng.uniform(0.7, 1.3, (parts * shots, 1)), rng.uniform(-20, 20, (parts * shots, 1))
    grey = 128 + light[1] + light[0] * (scenes + rng.normal(0, noise, scenes.shape))
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 99))
def test_shots_are_found_and_named_by_the_first_of_them(parts, shots, seed):
    found = look_alikes(photos(parts, shots, seed))
    np.testing.assert_array_equal(found, np.arange(parts * shots) // shots * shots)


def test_of_one_product_in_one_place_no_two_parts_are_taken_for_one():
    rng = np.random.default_rng(0)
    product = rng.normal(0, 60, 256)
    grey = 128 + product + rng.normal(0, 4, (200, 256))
    found = look_alikes(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    assert len(set(found.tolist())) == 200


def test_in_blocks_the_same_is_found(monkeypatch):
    grey = photos(40, 3)[np.random.default_rng(1).permutation(120)]
    whole = look_alikes(grey)
    monkeypatch.setattr(likeness, "_BLOCK", 7)
    monkeypatch.setattr(likeness, "_BLOCKS_AHEAD", 20)
    np.testing.assert_array_equal(look_alikes(grey), whole)
    monkeypatch.setattr(likeness, "_BLOCKS_AHEAD", 1)
    grey = photos(40, 3)
    np.testing.assert_array_equal(look_alikes(grey), np.arange(120) // 3 * 3)


def test_none_and_one_and_equal_photos():
    assert look_alikes(np.empty((0, 256), np.uint8)).tolist() == []
    assert look_alikes(np.zeros((1, 256), np.uint8)).tolist() == [0]
    # Copies are one part, also where most are.
    assert look_alikes(np.zeros((3, 256), np.uint8)).tolist() == [0, 0, 0]
    mostly = np.concatenate([np.repeat(photos(1, 1), 8, axis=0), photos(3, 1, seed=1)])
    assert look_alikes(mostly).tolist() == [0] * 8 + [8, 9, 10]


@given(st.integers(16, 70), st.integers(16, 70), st.integers(0, 99))
def test_a_cell_is_the_mean_of_its_pixels(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    found = thumbnail(pixels)
    rows = [n * height // 16 for n in range(17)]
    columns = [n * width // 16 for n in range(17)]
    for y in (0, 7, 15):
        for x in (0, 9, 15):
            cell = pixels[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
            assert abs(int(found[y, x]) - cell.mean()) <= 0.5 + 1e-9


def test_of_a_tiny_input_there_is_a_thumbnail_too():
    assert thumbnail(np.full((8, 5, 3), 7, np.uint8)).shape == (16, 16)


def test_a_night_of_one_part_is_linked_as_the_training_images_were():
    training, night = photos(40, 3), photos(1, 6, seed=9)
    limit = likeness.alike_limit(training)
    assert look_alikes(training, limit).tolist() == look_alikes(training).tolist()
    assert len(set(look_alikes(night, limit).tolist())) == 1
    # By their own typical difference they would be six parts.
    assert len(set(look_alikes(night).tolist())) == 6
