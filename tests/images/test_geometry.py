"""From the image to the input and back: torchvision, torch and scipy are the oracles."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage
from torchvision import transforms

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.images import geometry as geometry_module
from patchlake.pipeline.images.geometry import (
    MAP_SIGMA,
    Geometries,
    Geometry,
    geometry_of,
    inputs_of,
)

SQUASH = Geometry((224, 224), None)
PAPER = Geometry(256, 224)
maps = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    elements=st.floats(0, 100, width=32),
)
sides = st.integers(1, 300)


def _noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(sides, sides, sides, sides)
@settings(max_examples=30)
def test_a_pair_squashes_as_torchvision_does(width, height, rows, columns):
    image = _noise(width, height)
    geometry = Geometry((rows, columns), None)
    assert geometry.input_size == (rows, columns)
    expected = transforms.Resize((rows, columns))(image)
    assert np.array_equal(geometry.apply(image), np.asarray(expected))


@given(st.integers(20, 400), st.integers(20, 400), st.data())
@settings(max_examples=50)
def test_an_integer_and_a_crop_are_torchvisions_resize_and_centre_crop(width, height, data):
    resize = data.draw(st.integers(1, 200))
    crop = data.draw(st.integers(1, resize))
    image = _noise(width, height)
    expected = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])(image)
    geometry = Geometry(resize, crop)
    assert geometry.input_size == (crop, crop)
    assert np.array_equal(geometry.apply(image), np.asarray(expected))


def test_a_pair_can_be_cropped_too():
    image = _noise(90, 50)
    expected = transforms.CenterCrop(40)(transforms.Resize((41, 60))(image))
    assert np.array_equal(Geometry((41, 60), 40).apply(image), np.asarray(expected))


@pytest.mark.parametrize(
    "geometry", [SQUASH, PAPER, Geometry((64, 96), None), Geometry((64, 96), 50)]
)
@pytest.mark.parametrize("size", [(300, 300), (640, 400), (400, 641), (2, 1000)])
def test_a_constant_map_is_a_constant_frame(geometry, size):
    for frame_size in (size[::-1], (256, 256), (1, 512), (1, 1)):
        frame = geometry.to_frame(np.full((28, 28), 7.5, np.float32), size, frame_size)
        assert frame.shape == frame_size
        assert frame.dtype == np.float32
        np.testing.assert_allclose(frame, 7.5, rtol=1e-6)


def _reference(
    anomaly_map: np.ndarray, input_size: tuple[int, int], resized: tuple[int, int], frame: tuple
) -> np.ndarray:
    """Step by step; around a crop the rim goes on, as nothing is known there."""

    def interpolate(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        tensor = torch.from_numpy(grid.astype(np.float64))[None, None]
        return torch.nn.functional.interpolate(
            tensor, size=size, mode="bilinear", align_corners=False
        )[0, 0].numpy()

    smoothed = ndimage.gaussian_filter(interpolate(anomaly_map, input_size), sigma=MAP_SIGMA)
    before = [round((whole - part) / 2) for whole, part in zip(resized, input_size, strict=True)]
    pads = [
        (first, whole - part - first)
        for first, whole, part in zip(before, resized, input_size, strict=True)
    ]
    sampled = interpolate(np.pad(smoothed, pads, mode="edge"), frame)
    inside = np.ones(frame, bool)
    for axis in (0, 1):
        centres = (np.arange(frame[axis]) + 0.5) * resized[axis] / frame[axis]
        known = (centres >= before[axis]) & (centres < before[axis] + input_size[axis])
        inside &= np.expand_dims(known, 1 - axis)
    return np.where(inside, sampled, sampled[inside].min())


@given(maps, st.tuples(sides, sides), st.tuples(sides, sides))
@settings(max_examples=30)
def test_the_frame_of_a_squashed_image_is_resized_smoothed_and_resized(
    anomaly_map, input_size, frame_size
):
    frame = Geometry(input_size, None).to_frame(anomaly_map, (1000, 10), frame_size)
    expected = _reference(anomaly_map, input_size, input_size, frame_size)
    np.testing.assert_allclose(frame, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "resized"),
    [((300, 300), (256, 256)), ((640, 400), (256, 409)), ((333, 501), (385, 256))],
)
@pytest.mark.parametrize("frame_size", [(256, 256), (300, 480), (31, 47)])
def test_the_frame_of_a_cropped_image_has_the_lowest_value_outside_the_crop(
    size, resized, frame_size
):
    anomaly_map = np.random.default_rng(0).uniform(1, 50, (28, 28)).astype(np.float32)
    frame = PAPER.to_frame(anomaly_map, size, frame_size)
    expected = _reference(anomaly_map, (224, 224), resized, frame_size)
    np.testing.assert_allclose(frame, expected, rtol=0, atol=1e-4)
    assert frame[0, 0] == frame[-1, -1] == frame.min()


@pytest.mark.parametrize("geometry", [SQUASH, PAPER], ids=["whole image", "crop"])
@pytest.mark.parametrize("size", [(150, 150), (160, 100), (100, 160)], ids=str)
@given(st.integers(2, 25), st.integers(2, 25))
@settings(max_examples=10)
def test_a_hot_patch_lies_in_the_frame_where_it_lies_in_the_image(geometry, size, row, column):
    anomaly_map = np.zeros((28, 28), np.float32)
    anomaly_map[row, column] = 1
    width, height = size
    # What the model sees at this patch, found by marking pixels of the image: a coordinate each.
    coordinates = np.zeros((height, width, 3), np.uint8)
    coordinates[..., 0] = np.linspace(0, 255, width)[None, :]
    coordinates[..., 1] = np.linspace(0, 255, height)[:, None]
    seen = geometry.apply(Image.fromarray(coordinates))
    patch = seen[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].mean(axis=(0, 1)) / 255
    for frame_size in ((height, width), (128, 128)):
        frame = geometry.to_frame(anomaly_map, size, frame_size)
        y, x = np.unravel_index(frame.argmax(), frame.shape)
        assert abs((x + 0.5) / frame_size[1] - patch[0]) < 0.015
        assert abs((y + 0.5) / frame_size[0] - patch[1]) < 0.015


@pytest.mark.parametrize(
    ("resize", "crop", "said"),
    [
        (224, 256, "image.crop 256 is larger than image.resize 224"),
        ((300, 200), 224, "image.crop 224 is larger than image.resize (300, 200)"),
        (256, None, "set image.crop, or image.resize=[256, 256] to squash"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_both_numbers(resize, crop, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Geometry(resize, crop)


def test_each_group_has_its_own_shape_or_all_have_one():
    own = geometry_of("auto", None, {"b": (32, 64), "a": (64, 32)})
    assert own == Geometries((("a", (64, 32)), ("b", (32, 64))))
    assert [own.of(group) for group in "ab"] == [Geometry((64, 32), None), Geometry((32, 64), None)]
    with pytest.raises(LookupError):
        own.of("c")
    one = geometry_of((48, 48), None, {})
    assert one.of("a") is one.of("c") is one


def test_inputs_of_several_models_are_made_once_a_group():
    own = geometry_of("auto", None, {"a": (48, 48), "b": (32, 64)})
    one = Geometry((48, 48), None)
    assert inputs_of([one, own], "a") == (one,)
    assert inputs_of([one, own, one], "b") == (one, Geometry((32, 64), None))


@given(maps, sides, sides)
@settings(max_examples=30, deadline=None)
def test_a_long_side_is_smoothed_as_any_other(grid, width, height):
    tall = Geometry((90, 40), None)
    expected = tall.to_frame(grid, (width, height), (33, 57))
    geometry_module._axis.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_module, "_DENSE_SIDE", 8)
        found = tall.to_frame(grid, (width, height), (33, 57))
    geometry_module._axis.cache_clear()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_coarse_frame_of_an_own_shape_shows_every_peak():
    """One patch of a large map, wherever it lies, is as high in a small frame as in a large one."""
    own = geometry_of("auto", None, {"a": (512, 640)}).of("a")
    grid = np.zeros((64, 80), np.float32)
    for y, x in ((13, 57), (0, 0), (40, 41)):
        grid[:] = 0
        grid[y, x] = 1
        peak = own.to_frame(grid, (640, 512), (512, 640)).max()
        small = own.to_frame(grid, (640, 512), (32, 40))
        assert small.max() == pytest.approx(peak, rel=0.02)
        assert np.unravel_index(small.argmax(), small.shape) == (y // 2, x // 2)
    sampled = Geometry((512, 640), None).to_frame(grid, (640, 512), (32, 40))
    assert sampled.max() < 0.9 * peak


@given(maps, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_frame_that_is_not_coarser_is_as_without_peaks(grid, rows, columns):
    own, pair = Geometry((64, 48), None, keeps_peaks=True), Geometry((64, 48), None)
    frame = 32 + rows, 24 + columns
    expected = pair.to_frame(grid, (70, 50), frame)
    assert np.array_equal(own.to_frame(grid, (70, 50), frame), expected)
