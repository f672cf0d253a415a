"""What is resized from grey, or at a reduced scale, against the plain way: all pixels, as RGB."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.decode import decode_picture
from patchlake.pipeline.images.drafts import draft_scale
from patchlake.pipeline.images.files import decode_image, decode_light
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Geometry, join_inputs
from patchlake.pipeline.images.pictures import (
    photo_pixels,
    picture_size,
    read_picture,
    resized_photo,
)

WHOLE, DRAFT = Limits(), Limits(draft=True)
SQUASH, CROPPED = Geometry((48, 32), None), Geometry(48, 40)
BILINEAR = Image.Resampling.BILINEAR
MODES = ("RGB", "L", "1", "CMYK", "P", "LA", "RGBA")


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _pattern(kind: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        pixels = rng.integers(0, 256, (height, width, 3))
    elif kind == "black and white":
        pixels = rng.integers(0, 2, (height, width, 3)) * 255
    elif kind == "stripes":
        pixels = np.tile(np.arange(width)[:, np.newaxis] // 3 % 2 * 255, (height, 1, 3))
    else:
        slope = np.add.outer(np.arange(height) / height, np.arange(width) / width)
        pixels = slope[..., np.newaxis] * rng.uniform(60, 127, 3)
    return Image.fromarray(pixels.astype(np.uint8))


patterns = st.builds(
    _pattern,
    st.sampled_from(["noise", "black and white", "stripes", "gradient"]),
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(0, 2**32),
)


def _smooth(width: int, height: int, *, mode: str = "RGB") -> Image.Image:
    """A picture without fine detail, of which no corner is like another."""
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(3 * rows + 5 * columns), np.cos(4 * rows - columns), rows - columns]
    levels = 127 + 100 * np.stack(waves, -1)
    return Image.fromarray(levels.astype(np.uint8)).convert(mode)


def _turned(image: Image.Image, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return _encode(image, "JPEG", quality=95, exif=exif, **options)


def _levels(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected.astype(int))


# --- without a draft: the plain way is to make all of a file RGB, and then to resize it


@given(patterns, st.sampled_from(MODES), st.sampled_from([SQUASH, CROPPED]))
@settings(max_examples=60, deadline=None)
def test_inputs_are_those_of_the_plain_way_to_the_byte(image, mode, geometry):
    content = _encode(image.convert(mode), "TIFF")
    found = read_picture(content, WHOLE, [geometry], photo=False)
    plain = decode_image(content, WHOLE)
    assert plain.mode == "RGB"
    height, width = geometry.resized(*plain.size)
    resized = np.asarray(plain.resize((width, height), BILINEAR))
    top, left = (
        round((a - b) / 2) for a, b in zip((height, width), geometry.input_size, strict=True)
    )
    rows, columns = geometry.input_size
    assert np.array_equal(found.pixels, resized[top : top + rows, left : left + columns])


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_grey_stays_grey_until_it_is_resized(depth, kind):
    values = np.linspace(0, np.iinfo(depth).max, 300 * 200).reshape(200, 300).astype(depth)
    content = _encode(Image.fromarray(values), kind)
    image, extent = decode_light(content, WHOLE, [SQUASH])
    assert image.mode == "L"
    assert extent is None
    assert np.array_equal(join_inputs(image, [SQUASH]), SQUASH.apply(image.convert("RGB")))


def _shown(content: bytes, limits: Limits) -> Image.Image:
    """What a heatmap is drawn on, before it is JPEG."""
    return resized_photo(*decode_light(content, limits, [SQUASH]))


@given(
    patterns.map(lambda image: image.resize((900, 700), Image.Resampling.NEAREST)) | patterns,
    st.sampled_from(MODES),
)
@settings(max_examples=40, deadline=None)
def test_a_photo_of_less_than_two_sides_is_that_of_the_plain_way_to_the_byte(image, mode):
    content = _encode(image.convert(mode), "TIFF")
    plain = decode_image(content, WHOLE)
    height, width = picture_size(*plain.size)
    expected = np.asarray(plain.resize((width, height), BILINEAR))
    found = _shown(content, WHOLE)
    assert np.array_equal(np.asarray(found.convert("RGB")), expected)
    # Grey stays so, but where it has alpha.
    assert found.mode == ("L" if mode in ("L", "1") else "RGB")


@pytest.mark.parametrize("side", [1024, 1025, 1600, 2047])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_photo_of_a_large_file_is_near_that_of_the_plain_way(side, mode):
    noise = np.random.default_rng(0).normal(0, 2, (side // 2, side, 3))
    smooth = np.asarray(_smooth(side, side // 2), float)
    image = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).convert(mode)
    plain = image.resize((512, 256), BILINEAR)
    found = resized_photo(image)
    assert found.mode == mode
    assert _levels(np.asarray(found), np.asarray(plain)).max() <= 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_photo_travels_as_jpeg_of_its_mode(mode):
    image = _smooth(800, 600, mode=mode)
    content = _encode(image, "PNG")
    photo = read_picture(content, WHOLE, [SQUASH], photo=True).photo
    with Image.open(io.BytesIO(photo)) as jpeg:
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", mode, (512, 384))
    shown = np.asarray(_shown(content, WHOLE).convert("RGB"))
    off = _levels(photo_pixels(photo), shown)
    assert off.max() <= 8
    assert off.mean() <= 1


def test_a_dot_that_grey_would_hide_is_in_the_photo():
    yellow, red = (170, 170, 30), (240, 118, 110)
    image = Image.new("RGB", (600, 400), yellow)
    image.paste(red, (300, 200, 330, 230))
    shades = {image.convert("L").getpixel(place) for place in ((10, 10), (315, 215))}
    assert max(shades) - min(shades) <= 1
    content = _encode(image, "PNG")
    pixels = photo_pixels(read_picture(content, WHOLE, [SQUASH], photo=True).photo)
    for place, colour in (((10, 10), yellow), ((183, 268), red)):
        assert _levels(pixels[place], np.array(colour)).max() <= 6


# --- with a draft


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 400), st.integers(1, 400))
def test_a_scale_leaves_twice_the_resized_sides_and_is_the_smallest_that_does(w, h, rows, columns):
    scale = draft_scale(w, h, [Geometry((rows, columns), None)])
    assert scale in (1, 2, 4, 8)
    if scale > 1:
        assert w / scale >= 2 * columns
        assert h / scale >= 2 * rows
    if scale < 8:
        assert w / (2 * scale) < 2 * columns or h / (2 * scale) < 2 * rows


def test_the_largest_of_several_inputs_counts():
    small, large = Geometry((32, 32), None), Geometry((128, 16), None)
    assert draft_scale(1024, 1024, [small]) == 8
    assert draft_scale(1024, 1024, [small, large]) == draft_scale(1024, 1024, [large]) == 4
    # Of a crop, the whole that it is cut from.
    assert draft_scale(4096, 1024, [Geometry(256, 8)]) == 2


@given(
    st.integers(200, 500),
    st.integers(200, 500),
    st.integers(0, 9),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.booleans(),
    st.sampled_from([SQUASH, CROPPED]),
)
@settings(max_examples=60, deadline=None)
def test_a_draft_is_the_picture_wherever_its_orientation_turns_it(
    width, height, orientation, mode, is_progressive, geometry
):
    # libjpeg's blocks, and sides that no scale divides, must not move the picture: of slopes of
    # some 10 levels a pixel of the input, half a pixel of a draft would be 4 or more.
    content = _turned(_smooth(width, height, mode=mode), orientation, progressive=is_progressive)
    whole = read_picture(content, WHOLE, [geometry], photo=True)
    found = read_picture(content, DRAFT, [geometry], photo=True)
    assert decode_light(content, DRAFT, [geometry])[1] is not None
    assert (found.width, found.height) == (whole.width, whole.height)
    assert _levels(found.pixels, whole.pixels).max() <= 3
    shown = [np.asarray(_shown(content, limits).convert("L")) for limits in (DRAFT, WHOLE)]
    assert _levels(*shown).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_photo_of_a_draft_that_is_large_itself_is_in_its_place(orientation):
    # A half of this file is still twice the photo, whose sides are divided first.
    content = _turned(_smooth(2101, 2099), orientation)
    shown = [
        resized_photo(*decode_light(content, limits, [Geometry((300, 300), None)]))
        for limits in (DRAFT, WHOLE)
    ]
    assert draft_scale(2101, 2099, [Geometry((300, 300), None)]) == 2
    assert _levels(*(np.asarray(one) for one in shown)).max() <= 6


def test_a_draft_is_of_the_lower_frequencies_of_all_pixels():
    # Detail that the input cannot show goes, of 255 levels, and does not come back as stripes.
    stripes = _pattern("stripes", 512, 512, 0)
    content = _encode(stripes, "JPEG", quality=95)
    whole, found = (read_picture(content, one, [SQUASH], photo=False) for one in (WHOLE, DRAFT))
    assert _levels(found.pixels, whole.pixels).max() <= 12
    assert _levels(found.pixels, whole.pixels).mean() <= 3


def test_a_decoding_process_drafts_as_this_one():
    for orientation in range(1, 9):
        content = _turned(_smooth(301, 233), orientation)
        here = read_picture(content, DRAFT, [SQUASH, CROPPED], photo=True)
        there = decode_picture(content, DRAFT, [SQUASH, CROPPED], photo=True)
        assert here.photo == there.photo
        assert np.array_equal(here.pixels, there.pixels)
        assert (here.width, here.height) == (there.width, there.height)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP"])
def test_other_kinds_of_files_are_decoded_as_they_are(kind):
    options = {"compression": "jpeg"} if kind == "TIFF" else {}
    content = _encode(_smooth(400, 400), kind, **options)
    whole, found = (read_picture(content, one, [SQUASH], photo=True) for one in (WHOLE, DRAFT))
    assert np.array_equal(found.pixels, whole.pixels)
    assert found.photo == whole.photo


def test_a_photo_that_is_not_much_larger_is_decoded_as_it_is():
    content = _encode(_pattern("noise", 4 * 32 - 1, 4 * 48, 0), "JPEG")
    whole, found = (read_picture(content, one, [SQUASH], photo=True) for one in (WHOLE, DRAFT))
    assert np.array_equal(found.pixels, whole.pixels)
    assert decode_light(content, DRAFT, [SQUASH])[1] is None


def test_a_phones_jpeg_of_several_pictures_is_its_first_one():
    photo = _smooth(403, 397)
    content = _encode(photo, "MPO", save_all=True, append_images=[photo.rotate(90)], quality=95)
    whole, found = (read_picture(content, one, [SQUASH], photo=False) for one in (WHOLE, DRAFT))
    assert decode_light(content, DRAFT, [SQUASH])[1] is not None
    assert _levels(found.pixels, whole.pixels).max() <= 3


def _lossless(width: int, height: int) -> bytes:
    """A lossless JPEG of grey 127: each sample is the one before it. libjpeg has no scale of it."""
    frame = b"\xff\xc3\0\x0b\x08" + height.to_bytes(2) + width.to_bytes(2) + b"\x01\x01\x11\0"
    # One code, of one bit, for a difference of 0; predictor 1.
    table = b"\xff\xc4\0\x14\0\x01" + bytes(15) + b"\0"
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\0\0"
    return b"\xff\xd8" + frame + table + scan + bytes(width * height // 8 + 1) + b"\xff\xd9"


def test_a_lossless_jpeg_has_no_scale_and_is_decoded_as_it_is():
    content = _lossless(400, 400)
    assert np.ptp(read_picture(content, WHOLE, [SQUASH], photo=False).pixels) == 0
    found = decode_picture(content, DRAFT, [SQUASH], photo=True)
    assert (found.width, found.height) == (400, 400)
    assert found.pixels.min() == found.pixels.max() == 128


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("is_progressive", [False, True])
def test_what_is_broken_has_the_error_that_it_has_without_a_draft(kept, is_progressive):
    content = _encode(_pattern("noise", 400, 400, 0), "JPEG", progressive=is_progressive)
    content = content[: int(len(content) * kept)]
    said = []
    for limits in (WHOLE, DRAFT):
        with pytest.raises(ImageError) as raised:
            decode_picture(content, limits, [SQUASH], photo=True)
        said.append((raised.value.status, str(raised.value)))
    assert said[0] == said[1]


def test_limits_are_of_the_file_and_not_of_its_draft():
    content = _encode(_smooth(400, 400), "JPEG")
    with pytest.raises(ImageError, match=r"400x400 pixels, image\.max_pixels is 100000"):
        decode_picture(content, replace(DRAFT, max_pixels=100_000), [SQUASH], photo=True)
    strip = _encode(_smooth(20_000, 10), "JPEG")
    with pytest.raises(ImageError, match="20000x10 pixels become 1000000x500"):
        read_picture(strip, DRAFT, [Geometry(500, 100), Geometry((1, 100), None)], photo=True)
