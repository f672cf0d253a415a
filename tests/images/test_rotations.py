"""Photos turned about their centre: numpy's and scipy's ways to do it are the oracles."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from patchlake.pipeline.images.decode import decode_picture
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Extent, Geometry, turned_inputs
from patchlake.pipeline.images.pictures import read_picture
from patchlake.pipeline.images.rotations import mirrored, rotated

sides = st.integers(1, 40)
quarters = st.integers(0, 3)


def noise(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


@given(sides, quarters)
def test_quarters_of_a_square_are_exact(side, number):
    pixels = noise(side, side, 3)
    found = rotated(pixels, (side, side), 90.0 * number)
    np.testing.assert_array_equal(found, np.rot90(pixels, number))


@given(sides, sides, st.floats(0, 360))
def test_beyond_its_borders_a_photo_is_its_mirror_image(height, width, degrees):
    """As scipy has it, in float64, with its mode of this name."""
    pixels = noise(height, width, 3)
    turn = np.radians(degrees)
    # From a row and column of the result to those of the photo.
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = (np.array([height, width]) - 1) / 2
    expected = np.stack(
        [
            ndimage.affine_transform(
                pixels[..., channel].astype(np.float64),
                matrix,
                centre - matrix @ centre,
                order=1,
                mode="reflect",
            )
            for channel in range(3)
        ],
        axis=2,
    )
    found = rotated(pixels, (width, height), degrees)
    np.testing.assert_allclose(found, expected, atol=0.51)


@given(st.integers(1, 9), st.integers(-60, 60))
def test_a_side_is_mirrored_again_and_again(count, place):
    padded = np.pad(np.arange(count), 80, mode="symmetric")
    assert mirrored(np.array([place]), count)[0] == padded[place + 80]


def test_a_squashed_photo_is_turned_as_the_part_is():
    """A disc stays one, however it is squashed; and half a turn is that of the array."""
    y, x = np.mgrid[:60, :30]
    inside = ((y - 29.5) / 20) ** 2 + ((x - 14.5) / 10) ** 2 <= 1
    disc = np.where(inside, 200, 50).astype(np.uint8)
    turned = rotated(disc, (300, 300), 45)
    assert np.mean(np.abs(turned.astype(int) - disc)[10:50, 5:25] > 75) < 0.02
    as_it_is = rotated(disc, (30, 60), 45).astype(int)
    assert np.mean(np.abs(as_it_is - disc)[10:50, 5:25] > 75) > 0.1
    np.testing.assert_array_equal(
        rotated(noise(60, 30), (300, 300), 180), noise(60, 30)[::-1, ::-1]
    )


def test_one_colour_stays_one_colour():
    for degrees in (0, 45, 90, 135, 200.5):
        assert np.ptp(rotated(np.full((31, 17, 3), 77, np.uint8), (17, 31), degrees)) == 0


def test_the_inputs_of_a_photo_are_itself_and_its_turns():
    image = Image.fromarray(noise(64, 64, 3))
    geometry = Geometry((32, 32), None)
    inputs = [one.apply(image) for one in turned_inputs(geometry, 4)]
    for number, found in enumerate(inputs):
        turned = Image.fromarray(np.rot90(np.asarray(image), number))
        np.testing.assert_array_equal(found, geometry.apply(turned))


def test_a_large_photo_is_made_smaller_before_it_is_turned():
    """What is lost is a trace of what resizing loses."""
    smooth = Image.fromarray(noise(16, 16, 3)).resize((400, 400), Image.Resampling.BICUBIC)
    geometry = Geometry((32, 32), None, degrees=45)
    whole = Image.fromarray(rotated(np.asarray(smooth), smooth.size, 45))
    expected = Geometry((32, 32), None).apply(whole).astype(int)
    assert np.abs(geometry.apply(smooth) - expected).mean() < 2


def test_a_photo_at_a_reduced_scale_is_turned_about_the_centre_of_the_file():
    """Its last column and row are only in part the file's."""
    smooth = np.asarray(Image.fromarray(noise(9, 9, 3)).resize((101, 61), Image.Resampling.BICUBIC))
    padded = np.pad(smooth, ((0, 1), (0, 1), (0, 0)), mode="edge")
    half = Image.fromarray(padded).resize((51, 31), Image.Resampling.BOX)
    extent = Extent((101, 61), (0, 0, 50.5, 30.5))
    for degrees in (45.0, 90.0):
        geometry = Geometry((20, 20), None, degrees=degrees)
        whole, reduced = geometry.apply(Image.fromarray(smooth)), geometry.apply(half, extent)
        assert np.abs(whole.astype(int) - reduced).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("geometry", [Geometry((24, 16), None), Geometry(20, 16)])
def test_a_decoding_process_turns_as_this_one_does(mode, geometry):
    sink = io.BytesIO()
    Image.fromarray(noise(70, 50, 3)).convert(mode).save(sink, "PNG")
    inputs = turned_inputs(geometry, 8)
    there = decode_picture(sink.getvalue(), Limits(), inputs, photo=False).pixels
    here = read_picture(sink.getvalue(), Limits(), inputs, photo=False).pixels
    np.testing.assert_array_equal(there, here)
    height, width = geometry.input_size
    pixels = there.reshape(8, height, width, 3)
    assert len({one.tobytes() for one in pixels}) == 8
