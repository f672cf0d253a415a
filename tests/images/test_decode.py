"""Untrusted bytes: an odd file has one meaning, a bad one a status, and nothing else escapes.

Pillow warns (UserWarning) about damaged EXIF and TIFF tags; the property test ignores that.
"""

import contextlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.decode import is_image
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import KNOWN, Limits

RNG = np.random.default_rng(0)
# 16 x 24 with no symmetry, of flat 8 x 8 blocks, which survive JPEG.
UPRIGHT = np.kron(RNG.integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
PICTURE = Image.fromarray(UPRIGHT)
SMALL = Limits(max_pixels=10_000, max_bytes=1_000_000, formats=KNOWN)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _decode(content: bytes) -> np.ndarray:
    image = decode_image(content, SMALL)
    assert image.mode == "RGB"
    return np.asarray(image)


def _status(content: bytes, **limits: object) -> str:
    with pytest.raises(ImageError) as raised:
        decode_image(content, replace(SMALL, **limits))
    assert str(raised.value)
    return raised.value.status


JPEG = _encode(PICTURE, "JPEG", quality=95, subsampling=0)
PNG = _encode(PICTURE, "PNG")


def _tiff(offset_type: int, offset: int) -> bytes:
    """1 x 2 grey pixels, which are at 8; eight bytes of 0xff are at 10."""
    short, long = 3, 4
    tags = [(256, short, 1 << 16), (257, short, 2 << 16), (258, short, 8 << 16)]
    tags += [(259, short, 1 << 16), (262, short, 1 << 16), (273, offset_type, offset)]
    tags += [(277, short, 1 << 16), (279, long, 2)]
    entries = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"MM\0*" + struct.pack(">I", 18) + b"\x10\xf0" + b"\xff" * 8
    return head + struct.pack(">H", len(tags)) + entries + bytes(4)


# --- what is refused


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(JPEG[:-30], id="jpeg without end"),
        pytest.param(JPEG[:30], id="jpeg head"),
        pytest.param(PNG[:-30], id="png without end"),
        pytest.param(PNG[: PNG.index(b"IDAT") + 10], id="png head"),
        pytest.param(_tiff(2, 8), id="tiff offset is a text"),
        pytest.param(_tiff(16, 10), id="tiff offset of 64 bits"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 1000, id="zeros"),
        pytest.param(b"this is a text, whatever its name ends in", id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(_encode(PICTURE, "EPS"), id="eps"),
        pytest.param(_encode(PICTURE, "PDF"), id="pdf"),
        pytest.param(_encode(PICTURE, "ICO"), id="ico"),
    ],
)
def test_what_is_no_whole_raster_image_is_unreadable(content):
    assert _status(content) == "unreadable"


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.ones((4, 4), np.float32)),
        Image.fromarray(np.ones((4, 4), np.int32)),
    ],
    ids=lambda image: image.mode,
)
def test_pixels_of_32_bits_are_unsupported(image):
    assert _status(_encode(image, "TIFF")) == "unsupported"


def _png(width: int, height: int, data: bytes) -> bytes:
    """A 1-bit grey PNG."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, body) for name, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def test_a_decompression_bomb_is_refused_from_its_header():
    # Its pixels are broken: whoever decodes one finds it unreadable instead.
    assert _status(_png(20_000, 20_000, b"broken")) == "too_large"
    assert _status(_png(20_000, 20_000, b"broken"), max_pixels=400_000_000) == "unreadable"
    whole = zlib.compress(bytes(16 * 3))
    assert _status(_png(16, 16, whole), max_pixels=255) == "too_large"
    small = decode_image(_png(16, 16, whole), Limits(max_pixels=256, max_bytes=1000))
    assert small.size == (16, 16)


def test_a_first_frame_beyond_the_gif_header_is_held_against_the_limit_too():
    content = bytearray(_encode(PICTURE, "GIF"))
    content[6:10] = struct.pack("<HH", 1, 1)
    assert _status(bytes(content), max_pixels=100) == "too_large"


def test_too_many_bytes_are_refused_unread():
    assert _status(b"x" * 11, max_bytes=10) == "too_large"
    assert _status(b"x" * 10, max_bytes=10) == "unreadable"
    assert decode_image(PNG, replace(SMALL, max_bytes=len(PNG))).size == (24, 16)


def test_is_image_looks_at_the_beginning_only():
    for content in (JPEG, JPEG[:-30], PNG, _png(20_000, 20_000, b"broken")):
        assert is_image(content)
    for content in (b"", b"\0" * 1000, b"text", _encode(PICTURE, "EPS"), JPEG[:2]):
        assert not is_image(content)


# --- what odd kinds mean


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG2000", {}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 3),
    ],
)
def test_every_kind_gives_the_picture(kind, options, tolerance):
    decoded = _decode(_encode(PICTURE, kind, **options))
    assert np.abs(decoded.astype(int) - UPRIGHT).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_is_the_full_range_onto_8_bits(kind, order):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = Image.fromarray(levels.astype(order))
    assert image.mode.startswith("I;16")
    decoded = _decode(_encode(image, kind))
    assert np.array_equal(decoded, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
    # Not by the content's own range: a dark picture stays dark, if somebody says that it is.
    dark = _encode(Image.fromarray(np.array([[0, 256, 257, 513, 514]], order)), kind)
    read = decode_image(dark, replace(SMALL, bits=16))
    assert np.asarray(read)[0, :, 0].tolist() == [0, 0, 1, 1, 2]
    assert _status(dark) == "unsupported"


def test_a_cmyk_jpeg_has_the_colours_of_the_rgb_one():
    content = _encode(PICTURE.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert np.abs(_decode(content).astype(int) - UPRIGHT).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_is_looked_up(kind):
    assert np.array_equal(_decode(_encode(PICTURE.quantize(6), kind)), UPRIGHT)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_black(kind):
    palette = PICTURE.quantize(6)
    entry = palette.getpixel((0, 0))
    expected = np.where((np.asarray(palette) == entry)[..., None], 0, UPRIGHT)
    assert np.array_equal(_decode(_encode(palette, kind, transparency=entry)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_blended_over_black(mode, kind):
    alpha = np.zeros(UPRIGHT.shape[:2], np.uint8)
    alpha[:8], alpha[8:, :8] = 255, 128
    image = PICTURE.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    opaque = np.asarray(PICTURE.convert(mode[:-1]).convert("RGB"))
    expected = opaque * (alpha[..., None] / 255)
    # WebP keeps what is under alpha 0 or not; it is black either way.
    decoded = _decode(_encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(decoded - expected).max() <= 1
    assert decoded[-1, -1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("transparent", [(0, 0, 0), (10, 20, 30)])
def test_a_transparent_colour_is_black(transparent):
    image = PICTURE.copy()
    image.paste((10, 20, 30), (0, 0, 8, 8))
    expected = np.array(image)
    if transparent == (10, 20, 30):
        expected[:8, :8] = 0
    assert np.array_equal(_decode(_encode(image, "PNG", transparency=transparent)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_is_black_and_white(kind):
    bits = UPRIGHT[..., 0] > 127
    decoded = _decode(_encode(Image.fromarray(bits), kind))
    assert np.array_equal(decoded, np.repeat(bits[..., None], 3, axis=2) * 255)


# By EXIF orientation: how the upright picture lies in the file (EXIF 2.32, 4.6.4 A).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_every_exif_orientation_gives_the_same_upright_picture(kind, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    decoded = _decode(_encode(stored, kind, exif=exif, **options))
    assert decoded.shape == UPRIGHT.shape
    assert np.abs(decoded.astype(int) - UPRIGHT).max() <= (3 if kind == "JPEG" else 0)


def test_a_plain_tiff_is_read_so_that_a_damaged_one_says_something():
    assert _decode(_tiff(4, 8))[:, 0, 0].tolist() == [0x10, 0xF0]


def test_an_odd_exif_tag_does_not_cost_the_picture():
    # Make (0x010f) is a text; here it is a fraction, which Pillow reads but cannot write.
    tags = struct.pack(">HHHIHHHHII", 2, 0x010F, 5, 1, 0, 38, 0x0112, 3, 1, 6 << 16)
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + tags + struct.pack(">III", 0, 1, 2)
    stored = Image.fromarray(np.ascontiguousarray(STORED[6]))
    decoded = _decode(_encode(stored, "JPEG", quality=95, subsampling=0, exif=exif))
    assert np.abs(decoded.astype(int) - UPRIGHT).max() <= 3


@pytest.mark.parametrize("options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_frame_counts(options):
    kind, more = options
    frames = [PICTURE.quantize(6), PICTURE.transpose(Image.Transpose.ROTATE_180).quantize(6)]
    frames = frames if kind == "GIF" else [frame.convert("RGB") for frame in frames]
    content = _encode(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    assert np.array_equal(_decode(content), UPRIGHT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_one_pixel_is_an_image(kind):
    assert _decode(_encode(Image.new("RGB", (1, 1), (255, 255, 255)), kind)).tolist() == [
        [[255] * 3]
    ]


# --- whatever the bytes are


def _samples() -> list[bytes]:
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "make", 0x011A: TiffImagePlugin.IFDRational(72)})
    palette = PICTURE.quantize(6)
    turned = PICTURE.transpose(Image.Transpose.ROTATE_180)
    grey16 = Image.fromarray(RNG.integers(0, 2**16, (9, 9)).astype(np.uint16))
    return [
        _encode(PICTURE, "JPEG", exif=exif),
        _encode(PICTURE.convert("CMYK"), "JPEG", progressive=True),
        _encode(PICTURE, "PNG", exif=exif),
        _encode(palette, "PNG", transparency=3),
        _encode(grey16, "PNG"),
        _encode(palette, "GIF", save_all=True, append_images=[turned.quantize(6)], transparency=1),
        _encode(PICTURE, "TIFF", exif=exif),
        _encode(PICTURE, "TIFF", exif=exif, compression="tiff_lzw"),
        _encode(palette, "TIFF", compression="packbits"),
        _encode(PICTURE, "WEBP", exif=exif),
        _encode(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[turned]),
        _encode(PICTURE, "BMP"),
        _encode(grey16, "PPM"),
        _encode(PICTURE, "JPEG2000"),
    ]


SAMPLES = _samples()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image with some bytes overwritten, and perhaps the end or a piece cut out."""
    content = bytearray(draw(st.sampled_from(SAMPLES)))
    # Headers and tags, where damage does most, are in the first 300 bytes or the last.
    near = st.integers(0, 300) | st.integers(-300, -1)
    places = near.map(lambda place: place % len(content)) | st.integers(0, len(content) - 1)
    pieces = st.binary(min_size=1, max_size=1) | st.sampled_from([b"\0" * 4, b"\xff" * 4])
    for place, piece in draw(st.lists(st.tuples(places, pieces), max_size=6)):
        content[place : place + len(piece)] = piece
    if draw(st.booleans()):
        del content[draw(places) :][: draw(st.sampled_from([1, 3, len(content)]))]
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(damaged() | st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_an_image_or_an_image_error(content):
    image = None
    with contextlib.suppress(ImageError):
        image = decode_image(content, Limits(100_000, 10_000, formats=KNOWN))
    if image is not None:
        assert image.mode == "RGB"
        assert image.width * image.height <= 100_000
