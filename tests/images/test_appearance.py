"""Brightness and sharpness: against the plain formulas, and what they must not hang on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from patchlake.pipeline.images.appearance import appearance
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.interior import Interior

sides = st.integers(3, 40)


def _picture(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _by_definition(pixels: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Pixel by pixel, every second row, as the module's docstring says."""
    grey = pixels.astype(float).mean(axis=2)
    laplacian, differences = [], []
    height, width = grey.shape
    for y in range(1, height - 1, 2):
        for x in range(1, width - 1):
            around = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
            if inside[y, x] and all(inside[place] for place in around):
                laplacian.append(grey[y, x] - np.mean([grey[place] for place in around]))
                differences += [grey[y, x + 1] - grey[y, x], grey[y + 1, x] - grey[y, x]]
    varied = np.mean(np.square(differences)) if differences else 0
    sharpness = np.sqrt(np.mean(np.square(laplacian)) / varied) if varied else 0
    return grey[inside].mean(), sharpness


@given(st.integers(0, 999), sides, sides)
def test_they_are_those_of_the_definition(seed, height, width):
    pixels = _picture(seed, height, width)
    found = appearance(pixels)
    assert found.thumbnail == thumbnail(pixels).tobytes()
    assert found[:2] == pytest.approx(
        _by_definition(pixels, np.ones((height, width), bool)), rel=1e-9
    )


@given(st.integers(0, 999))
def test_only_what_is_inside_counts(seed):
    pixels, rng = _picture(seed, 24, 31), np.random.default_rng(seed)
    inside = np.zeros((24, 31), bool)
    top, left = rng.integers(0, 10, 2)
    inside[top : top + rng.integers(1, 14), left : left + rng.integers(1, 20)] = True
    found = appearance(pixels, Interior.of(inside))[:2]
    assert found == pytest.approx(_by_definition(pixels, inside), rel=1e-9)
    others = np.where(inside[..., np.newaxis], pixels, 255 - pixels)
    assert appearance(others, Interior.of(inside))[:2] == found


def test_blur_lowers_sharpness_and_light_does_not():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(224, 224)), 1.5)
    grey = 120 + 40 * smooth / smooth.std()

    def of(values: np.ndarray) -> float:
        pixels = np.repeat(values.round().clip(0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)
        return appearance(pixels).sharpness

    sharp = of(grey)
    assert of(0.7 * grey) == pytest.approx(sharp, rel=0.03)
    assert of(grey + 20) == pytest.approx(sharp, rel=0.03)
    assert of(ndimage.gaussian_filter(grey, 1)) < 0.9 * sharp


def test_a_picture_of_one_colour_has_no_sharpness():
    assert appearance(np.full((8, 8, 3), 77, np.uint8))[:2] == (77, 0)
