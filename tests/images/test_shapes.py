"""The shape of inputs that is taken of photos: its laws, and what it is of some."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.images.shapes import differing, own_shape

sides = st.integers(1, 20_000)
photos = st.lists(st.tuples(sides, sides), min_size=1, max_size=9)
strides = st.sampled_from([1, 7, 8, 14, 16, 32])
pixels = st.integers(1, 4_000_000)


@pytest.mark.parametrize(
    ("size", "most", "shape"),
    [
        # Square photos: as many whole cells as are bounded.
        ((1024, 1024), 448 * 448, (448, 448)),
        ((1024, 1024), 224 * 224, (224, 224)),
        # A photo that is smaller than the bound is not enlarged.
        ((300, 200), 448 * 448, (208, 304)),
        ((1240, 500), 448 * 448, (288, 688)),
        ((500, 1240), 448 * 448, (688, 288)),
        # A line scan keeps its ratio of 32 within a tenth.
        ((16384, 512), 448 * 448, (80, 2496)),
        ((5472, 3648), 2048 * 2048, (1664, 2512)),
        ((5, 5), 448 * 448, (16, 16)),
    ],
)
def test_the_shape_is_that_of_the_photo(size, most, shape):
    assert own_shape([size], most, 16) == shape


@given(photos, pixels, strides)
def test_sides_are_multiples_of_the_stride_and_pixels_are_bounded(sizes, most, stride):
    height, width = own_shape(sizes, most, stride)
    assert height % stride == width % stride == 0
    assert min(height, width) >= stride
    assert height * width <= max(most, stride**2)


@given(photos, pixels, strides)
def test_no_side_is_enlarged_by_more_than_a_stride(sizes, most, stride):
    height, width = own_shape(sizes, most, stride)
    assert width < max(w for w, _ in sizes) * _reach(sizes) + stride
    assert height < max(h for _, h in sizes) * _reach(sizes) + stride


def _reach(sizes):
    """How much longer a side may be than any photo's: one's ratio is taken with another's area."""
    areas = [w * h for w, h in sizes]
    return math.sqrt(max(areas) / min(areas)) if len(sizes) > 1 else 1


@given(photos, pixels, strides, st.randoms(use_true_random=False))
def test_the_order_of_photos_does_not_show(sizes, most, stride, random):
    mixed = random.sample(sizes, len(sizes))
    assert own_shape(mixed, most, stride) == own_shape(sizes, most, stride)


@given(st.tuples(st.integers(100, 9000), st.integers(100, 9000)), st.integers(10**5, 10**6))
def test_one_side_is_next_to_the_exact_one_and_the_other_as_long_as_it_may_be(size, most):
    width, height = size
    scale = min(1, math.sqrt(most / (width * height)))
    found = own_shape([size], most, 16)
    exact = height * scale, width * scale
    is_near = [abs(s - e) < 16 or s == 16 for s, e in zip(found, exact, strict=True)]
    is_longest = [s // 16 == most // 256 // (o // 16) for s, o in (found, found[::-1])]
    assert any(is_near)
    assert all(near or longest for near, longest in zip(is_near, is_longest, strict=True))


@given(photos, st.tuples(sides, sides))
def test_differing_photos_are_those_of_another_ratio(sizes, shape):
    height, width = shape
    far = [abs(math.log(w / h) - math.log(width / height)) for w, h in sizes]
    # What lies on the limit, to rounding, may count or not.
    limit = math.log(1.25)
    assert sum(one > limit + 1e-9 for one in far) <= differing(sizes, shape)
    assert differing(sizes, shape) <= sum(one > limit - 1e-9 for one in far)


def test_the_most_frequent_camera_decides():
    sizes = [(640, 480)] * 3 + [(480, 640)] * 2
    assert own_shape(sizes, 448 * 448, 16) == own_shape([(640, 480)], 448 * 448, 16)
    assert differing(sizes, own_shape(sizes, 448 * 448, 16)) == 2
