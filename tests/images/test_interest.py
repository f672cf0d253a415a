"""What is outside a region of interest leaves no trace in the model's input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.geometry import Extent, Geometry
from patchlake.pipeline.images.interest import (
    BLANK,
    Interest,
    Painted,
    Polygons,
    confine,
    interior_of,
)
from patchlake.pipeline.images.pictures import picture_of

WHOLE = Polygons((((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),))
HALF = Polygons((((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),))
sides = st.integers(1, 120)
places = st.floats(0, 1)
polygons = st.lists(st.tuples(places, places), min_size=3, max_size=7).map(tuple)
geometries = st.one_of(
    st.builds(Geometry, st.tuples(st.integers(1, 60), st.integers(1, 60)), st.none()),
    st.integers(1, 40).flatmap(
        lambda crop: st.builds(Geometry, st.integers(crop, crop + 20), st.just(crop))
    ),
)
masks = st.builds(
    lambda width, height, seed: Painted.of(
        np.kron(np.random.default_rng(seed).random((height, width)) < 0.7, np.ones((5, 5), bool))
    ),
    *(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999)),
)
interests = st.one_of(
    st.lists(polygons, min_size=1, max_size=3).map(lambda found: Polygons(tuple(found))), masks
)


def inside_of(interest: Interest, width: int, height: int) -> np.ndarray:
    return interest.lines(0, height, (width, height))


def noise(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def is_in(x: float, y: float, polygon) -> bool:
    """The usual rule, one point at a time: how many sides are crossed on the way to the left."""
    crossed = 0
    for (ax, ay), (bx, by) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        if (ay <= y) != (by <= y) and ax + (y - ay) * (bx - ax) / (by - ay) <= x:
            crossed += 1
    return crossed % 2 == 1


@given(st.lists(polygons, min_size=1, max_size=3), sides, sides)
def test_a_pixel_is_in_a_polygon_where_its_centre_is(found, width, height):
    inside = inside_of(Polygons(tuple(found)), width, height)
    for y in range(0, height, 7):
        for x in range(0, width, 5):
            at = (x + 0.5) / width, (y + 0.5) / height
            # On a side, the rounding of a product decides.
            near = any(
                is_in(at[0] + s, at[1], p) != is_in(*at, p) for p in found for s in (-1e-9, 1e-9)
            )
            assert near or inside[y, x] == any(is_in(*at, p) for p in found)


def test_lines_are_the_same_in_whatever_strips_they_are_asked_for():
    some = Polygons((((0.1, 0.2), (0.9, 0.1), (0.6, 0.95)),))
    every = inside_of(some, 83, 61)
    strips = [some.lines(begin, min(begin + 7, 61), (83, 61)) for begin in range(0, 61, 7)]
    assert np.array_equal(np.concatenate(strips), every)
    assert every.any()
    assert not every.all()


def test_a_mask_of_the_pictures_size_is_taken_as_it_is_and_another_is_stretched():
    inside = np.random.default_rng(0).random((20, 30)) < 0.5
    mask = Painted.of(inside)
    assert np.array_equal(inside_of(mask, 30, 20), inside)
    assert np.array_equal(inside_of(mask, 60, 60), np.kron(inside, np.ones((3, 2), bool)))


@given(interests, geometries, sides, sides)
def test_no_pixel_outside_changes_a_bit_of_the_input(interest, geometry, width, height):
    one = noise(width, height, 1)
    # Every sample outside is another one.
    other = np.where(inside_of(interest, width, height)[..., None], one, 255 - one)
    found = []
    for pixels in (one, other):
        picture = picture_of(Image.fromarray(pixels), [geometry], photo=False)
        try:
            found.append(confine(picture, interest, [geometry], []).pixels.tobytes())
        except ImageError as error:
            found.append(str(error).encode())
    assert found[0] == found[1]


@given(polygons, st.sampled_from([2, 4, 8]), st.integers(16, 40), st.integers(16, 40))
def test_nor_does_one_of_a_picture_that_was_decoded_at_a_reduced_scale(
    polygon, scale, down, across
):
    """Each pixel of a draft is the mean of a block of the file's."""
    interest = Polygons((polygon,))
    geometry = Geometry((down, across), None)
    # Twice the sides of the input are left, as `drafts` sees to.
    height, width = 2 * down * scale, 2 * across * scale
    one = noise(width, height, 1)
    other = np.where(inside_of(interest, width, height)[..., None], one, 255 - one)
    found = []
    for pixels in (one, other):
        blocks = pixels.reshape(height // scale, scale, width // scale, scale, 3)
        draft = Image.fromarray(blocks.mean(axis=(1, 3)).astype(np.uint8))
        extent = Extent((width, height), (0, 0, *draft.size))
        picture = picture_of(draft, [geometry], photo=False, extent=extent)
        try:
            found.append(confine(picture, interest, [geometry], []).pixels.tobytes())
        except ImageError as error:
            found.append(str(error).encode())
    assert found[0] == found[1]


@given(geometries, sides, sides)
def test_a_region_of_everything_changes_nothing(geometry, width, height):
    picture = picture_of(Image.fromarray(noise(width, height, 1)), [geometry], photo=False)
    found = confine(picture, WHOLE, [geometry], [])
    assert np.array_equal(found.pixels, picture.pixels)
    assert found.interior.is_whole


def test_what_is_inside_stays_and_what_is_outside_is_blank_but_for_a_seam():
    geometry = Geometry((40, 40), None)
    picture = picture_of(Image.fromarray(noise(80, 80, 1)), [geometry], photo=False)
    found = confine(picture, HALF, [geometry], []).pixels
    # The seam is a pixel and a half of the input.
    assert np.array_equal(found[:, :18], picture.pixels[:, :18])
    assert (found[:, 20:] == BLANK).all()


def test_the_inputs_of_several_models_are_confined_each_at_its_size():
    geometries = [Geometry((32, 24), None), Geometry((16, 16), None)]
    image = Image.fromarray(noise(64, 48, 1))
    joined = confine(picture_of(image, geometries, photo=False), HALF, geometries, [])
    alone = [
        confine(picture_of(image, [one], photo=False), HALF, [one], []).pixels.ravel()
        for one in geometries
    ]
    assert np.array_equal(joined.pixels, np.concatenate(alone))
    assert joined.interior == interior_of(HALF, geometries[0], (64, 48))


@pytest.mark.parametrize(
    ("interest", "grids", "said"),
    [
        (Polygons((((0.0, 0.0), (0.0, 1.0), (0.0, 0.5)),)), [], "holds no pixel of the 40x40"),
        (
            Polygons((((0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)),)),
            [(5, 5), (2, 2)],
            r"holds \d+ pixels of the 40x40 that the model sees, and half of no patch of 2x2",
        ),
    ],
)
def test_a_region_without_a_patch_is_refused(interest, grids, said):
    geometry = Geometry((40, 40), None)
    picture = picture_of(Image.fromarray(noise(80, 80, 1)), [geometry], photo=False)
    with pytest.raises(ImageError, match=said) as error:
        confine(picture, interest, [geometry], grids)
    assert error.value.status == "unsupported"


@pytest.mark.parametrize(
    ("width", "height", "bits"),
    [(0, 4, b""), (4, -1, b""), (4, 4, b"no zlib"), (10**6, 10**6, b""), (40, 40, None)],
)
def test_a_mask_of_a_model_that_is_none_is_refused(width, height, bits):
    content = Painted.of(np.ones((4, 4), bool)).bits if bits is None else bits
    with pytest.raises(ValueError, match=r"mask of|header"):
        Painted.checked(width, height, content)


def test_the_frame_of_a_heatmap_shows_what_counts():
    geometry = Geometry(40, 30)
    inside = np.zeros((30, 30), bool)
    inside[:, :15] = True
    shown = geometry.over_frame(inside, (80, 40), (20, 40))
    # Of 80 columns the crop has the middle 30, of which the left half is inside.
    assert np.array_equal(np.flatnonzero(shown[10]), np.arange(12, 20))
    assert not shown[:2].any()
    assert not shown[-2:].any()
    assert shown[5:15, 12:20].all()
