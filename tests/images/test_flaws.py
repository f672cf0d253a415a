"""Synthetic defects: where they are is known exactly, and how large they are is what is said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from patchlake.pipeline.images.flaws import KINDS, flawed, perlin

kinds = st.sampled_from(KINDS)
sides = st.integers(32, 200)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a photo with something to see at every scale."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (height // 8 + 1, width // 8 + 1, 3))
    fine = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return (fine + rng.uniform(-20, 20, fine.shape)).clip(0, 255).astype(np.uint8)


@given(kinds, sides, sides, st.integers(0, 2**32))
def test_a_photo_is_changed_where_the_mask_is_and_nowhere_else(kind, height, width, seed):
    good = photo(height, width)
    found = flawed(good, kind, np.random.default_rng(seed), photo(50, 70, 1))
    assert found.pixels.shape == good.shape
    assert found.mask.any()
    changed = (found.pixels != good).any(axis=2)
    # The edges of thin things cover less than half of a pixel.
    around = ndimage.binary_dilation(found.mask, np.ones((3, 3)), iterations=2)
    assert not (changed & ~around).any()
    assert changed[found.mask].mean() > 0.5


@given(kinds, st.integers(0, 2**32))
def test_the_same_numbers_draw_the_same_defect(kind, seed):
    one, two = (
        flawed(photo(64, 48), kind, np.random.default_rng(seed), photo(50, 70, 1)) for _ in range(2)
    )
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.mask, two.mask)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    # Areas of squares of 0.02 and 0.15; of a line of 0.05 x 0.004 and 0.5 x 0.02, which has a pixel
    # at least and ends that count; of discs of 0.01 and 0.1.
    [
        ("patch", 0.02**2, 0.15**2),
        ("texture", 0.02**2, 0.15**2),
        ("scratch", 0.05 * 0.004, 0.52 * 0.022),
        ("spot", np.pi / 4 * 0.01**2, np.pi / 4 * 0.1**2),
    ],
)
def test_sizes_are_log_uniform_shares_of_the_shorter_side(kind, low, high):
    good, other = photo(400, 500), photo(400, 400, 1)
    areas = [
        flawed(good, kind, np.random.default_rng(seed), other).mask.sum() / 400**2
        for seed in range(150)
    ]
    # Rounded to pixels, four a side at the least.
    assert min(areas) > 0.4 * low
    assert max(areas) < 1.15 * high
    middle = np.exp(np.mean(np.log(areas)))
    assert np.sqrt(low * high) / 1.6 < middle < np.sqrt(low * high) * 1.6


@given(kinds, st.integers(0, 2**32))
def test_a_grey_photo_stays_grey(kind, seed):
    grey = photo(90, 90)[..., :1].repeat(3, axis=2)
    other = photo(80, 80, 1)[..., :1].repeat(3, axis=2)
    found = flawed(grey, kind, np.random.default_rng(seed), other).pixels
    assert (found == found[..., :1]).all()


def test_what_is_drawn_can_be_seen():
    good, other = photo(200, 200), photo(200, 200, 1)
    for kind in KINDS:
        for seed in range(20):
            found = flawed(good, kind, np.random.default_rng(seed), other)
            change = np.abs(found.pixels[found.mask].astype(int) - good[found.mask])
            assert change.mean() >= 8


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_perlin_noise_is_nothing_at_its_lattice_and_smooth_between(cells, seed):
    side = cells * 20
    noise = perlin(side, side, cells, np.random.default_rng(seed))
    assert np.abs(noise).max() <= 1
    # Half a pixel beside a point of the lattice.
    assert np.abs(noise[::20, ::20]).max() < 0.06
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2
    assert np.abs(np.diff(noise, axis=1)).max() < 0.2
