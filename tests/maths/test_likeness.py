"""Look-alikes: shots of a part are found, other parts are not, in any light."""

import numpy as np
import pytest
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


def test_shots_of_one_part_that_follow_one_another_are_linked():
    rng = np.random.default_rng(0)
    parts = np.repeat(np.arange(60), 3)
    embeddings = (rng.normal(size=(60, 8))[parts] + 0.01 * rng.normal(size=(180, 8))).astype("f4")
    limit = likeness.shot_distance(embeddings, parts)
    near = [np.linalg.norm(embeddings[i] - embeddings[i + 1]) for i in range(179) if i % 3 < 2]
    assert 0.8 * max(near) < limit < 2 * max(near)
    files = np.zeros(180, np.uint64)
    found = likeness.consecutive_parts(embeddings, files, limit)
    assert 60 <= len(np.unique(found)) < 80
    # Of another file, or far away in the same one, they are not looked at.
    assert (
        len(np.unique(likeness.consecutive_parts(embeddings, np.arange(180, dtype="u8"), limit)))
        == 180
    )
    spread = np.concatenate([embeddings[::3], embeddings[1::3], embeddings[2::3]])
    assert len(np.unique(likeness.consecutive_parts(spread, files, limit))) == 180


def test_where_no_part_has_two_shots_only_equals_are_linked():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(30, 8)).astype("f4")
    limit = likeness.shot_distance(embeddings, np.arange(30))
    assert limit == 0
    twice = np.repeat(embeddings, 2, axis=0)
    found = likeness.consecutive_parts(twice, np.zeros(60, np.uint64), limit)
    assert found.tolist() == np.repeat(np.arange(0, 60, 2), 2).tolist()
    nothing = np.empty((5, 0), np.float32)
    assert likeness.consecutive_parts(nothing, np.zeros(5, np.uint64), 1.0).tolist() == list(
        range(5)
    )
    assert likeness.shot_distance(nothing, np.arange(5)) == 0


def test_shots_that_differ_as_parts_do_are_linked_up_to_a_quarter_of_that():
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(200, 8)).astype("f4")
    parts = np.repeat(np.arange(100), 2)
    typical = np.median(np.linalg.norm(embeddings[::2][:, None] - embeddings[::2], axis=2))
    assert likeness.shot_distance(embeddings, parts) == pytest.approx(typical / 4, rel=0.05)
