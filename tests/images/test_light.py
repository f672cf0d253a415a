"""One picture in many forms of file is one picture; what nobody can tell is refused by name."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits

LEVELS = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
GREY = (LEVELS // 257).astype(np.uint8)
COLOUR = np.random.default_rng(3).integers(0, 256, (8, 6, 3)).astype(np.uint8)
LIMITS = Limits(max_pixels=10_000)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _read(content: bytes, **limits: object) -> np.ndarray:
    return np.asarray(decode_image(content, replace(LIMITS, **limits)))


def _refused(content: bytes, **limits: object) -> str:
    with pytest.raises(ImageError) as raised:
        _read(content, **limits)
    assert raised.value.status == "unsupported"
    return str(raised.value)


def _tiff(samples: np.ndarray, photometric: int, *, planar: bool = False, packed: bool = False):
    """A TIFF of (height, width, channels), little-endian; deflated strips, one a plane."""
    height, width, channels = samples.shape
    planes = [samples[..., i] for i in range(channels)] if planar else [samples]
    strips = [zlib.compress(np.ascontiguousarray(p).tobytes()) if packed
              else np.ascontiguousarray(p).tobytes() for p in planes]  # fmt: skip
    depth = samples.itemsize * 8
    short, long, count = 3, 4, len(strips)
    fields = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [depth] * channels),
        (259, short, [8 if packed else 1]),
        (262, short, [photometric]),
        (273, long, [0] * count),
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [len(strip) for strip in strips]),
        (284, short, [2 if planar else 1]),
    ]
    data_at = 8 + 2 + 12 * len(fields) + 4
    begins, at = [], data_at
    for strip in strips:
        begins.append(at)
        at += len(strip)
    blob, entries = b"".join(strips), b""
    fields = [(t, k, begins if t == 273 else v) for t, k, v in fields]
    for tag, kind, values in fields:
        packed_values = struct.pack("<" + ("H" if kind == short else "I") * len(values), *values)
        if len(packed_values) > 4:
            place = struct.pack("<I", data_at + len(blob))
            blob += packed_values
        else:
            place = packed_values.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + place
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + blob


def _netpbm(kind: str, samples: np.ndarray, top: int, comment: str = "") -> bytes:
    height, width = samples.shape[:2]
    head = f"{kind}\n{comment}{width} {height}\n{top}\n".encode()
    if kind in ("P2", "P3"):
        return head + " ".join(str(v) for v in samples.ravel()).encode() + b"\n"
    return head + samples.astype("u1" if top < 256 else ">u2").tobytes()


def _of_16_bits() -> dict[str, bytes]:
    image = Image.fromarray(LEVELS)
    deep = LEVELS[..., None]
    return {
        "png": _encode(image, "PNG"),
        "png, other order": _encode(Image.fromarray(LEVELS.astype(">u2")), "PNG"),
        "tiff": _encode(image, "TIFF"),
        "tiff lzw": _encode(image, "TIFF", compression="tiff_lzw"),
        "tiff MINISBLACK": _tiff(deep, 1),
        "tiff MINISWHITE": _tiff(65535 - deep, 0),
        "tiff MINISWHITE deflated": _tiff(65535 - deep, 0, packed=True),
        "pgm": _netpbm("P5", LEVELS, 65535),
        "pgm with a comment": _netpbm("P5", LEVELS, 65535, "# of 12 bits\n"),
        "plain pgm": _netpbm("P2", LEVELS, 65535),
        "pgm by Pillow": _encode(image, "PPM"),
        "pgm of 4095": _netpbm("P5", np.arange(256).reshape(16, 16) * 4095 // 255, 4095),
    }


@pytest.mark.parametrize("form", _of_16_bits())
def test_16_bit_grey_is_the_same_in_every_kind_of_file(form):
    found = _read(_of_16_bits()[form])
    tolerance = 1 if "4095" in form else 0
    assert np.abs(found.astype(int) - GREY[..., None]).max() <= tolerance


@pytest.mark.parametrize("top", [15, 100, 254, 255, 256, 1023, 4095, 32767, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_netpbm_file_is_scaled_by_its_own_maxval(kind, top):
    shape = (2, 3, 3) if kind in ("P3", "P6") else (2, 3)
    samples = np.resize(np.array([0, top // 3, top // 2, top - 1, top]), shape)
    found = _read(_netpbm(kind, samples, top))
    expected = samples * 255 / top
    assert np.abs(found - expected.reshape(2, 3, -1)).max() <= 1
    assert found.max() == 255


@pytest.mark.parametrize("text", ["", " ", "7 7 7 x", "7 7 7 -1", "7 7 7 8", "7 7 7 1e3", "#"])
def test_plain_samples_that_are_none_are_unreadable(text):
    with pytest.raises(ImageError) as raised:
        _read(b"P2\n2 2\n7\n" + text.encode())
    assert raised.value.status == "unreadable"


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("top", [7, 4095, 65535])
def test_a_netpbm_file_that_ends_early_is_unreadable(kind, top):
    samples = np.full((4, 4, 3) if kind in ("P3", "P6") else (4, 4), top)
    whole = _netpbm(kind, samples, top)
    with pytest.raises(ImageError, match=" of ") as raised:
        _read(whole[: -2 - len(str(top))])
    assert raised.value.status == "unreadable"


@pytest.mark.parametrize("content", [b"Pf\n1 1\n-1.0\n\0\0\0\0", b"PF\n1 1\n-1.0\n" + bytes(12),
                                     b"P7\nWIDTH 1\nENDHDR\n\0"])  # fmt: skip
def test_other_forms_of_netpbm_are_unsupported(content):
    assert "P1 to P6" in _refused(content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("sample", [np.uint8, np.uint16])
def test_the_colours_of_a_tiff_do_not_depend_on_its_planes(sample, planar, packed):
    samples = COLOUR.astype(sample) * (257 if sample is np.uint16 else 1)
    assert np.array_equal(_read(_tiff(samples, 2, planar=planar, packed=packed)), COLOUR)


@pytest.mark.parametrize("packed", [False, True])
def test_minis_white_of_8_bits_is_inverted(packed):
    found = _read(_tiff(255 - COLOUR[..., :1], 0, packed=packed))
    assert np.array_equal(found[..., 0], COLOUR[..., 0])


# --- cameras of 10 and 12 bits


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_the_lower_bits_of_16_are_light_where_image_bits_says_so(kind, bits):
    top = 2**bits - 1
    image = Image.fromarray(np.array([[0, top // 2, top]], np.uint16))
    assert _read(_encode(image, kind), bits=bits)[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("brightest", [1, 255, 1023, 4095])
def test_16_bits_that_fit_into_12_are_refused_by_the_setting_s_name(brightest):
    content = _encode(Image.fromarray(np.array([[0, brightest]], np.uint16)), "PNG")
    said = _refused(content)
    assert "image.bits=12" in said
    assert str(brightest) in said
    assert _read(content, bits=16).shape == (1, 2, 3)


def test_more_than_image_bits_is_refused_and_not_cut_off():
    content = _encode(Image.fromarray(np.array([[0, 4096]], np.uint16)), "PNG")
    assert "image.bits=12 ends at 4095" in _refused(content, bits=12)
    assert _read(content).max() == 15


def test_a_black_picture_is_black_whatever_the_bits():
    content = _encode(Image.fromarray(np.zeros((2, 2), np.uint16)), "PNG")
    for bits in (None, 10, 16):
        assert _read(content, bits=bits).max() == 0


def test_a_pgm_says_its_own_range_whatever_image_bits_says():
    content = _netpbm("P5", np.array([[0, 1023]]), 1023)
    assert _read(content).max() == _read(content, bits=12).max() == 255


def _deep_png(samples: np.ndarray, colour_type: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def test_16_bit_colour_is_its_upper_bits_or_refused():
    deep = COLOUR.astype(np.uint16) * 257
    for content in (_deep_png(deep, 2), _netpbm("P6", deep, 65535), _tiff(deep, 2)):
        assert np.array_equal(_read(content), COLOUR)
        assert np.array_equal(_read(content, bits=16), COLOUR)
    dark = deep >> 4
    for content in (_deep_png(dark, 2), _netpbm("P6", dark, 65535), _tiff(dark, 2)):
        assert "image.bits" in _refused(content)
    assert "upper 8 bits" in _refused(_deep_png(dark, 2), bits=12)
    found = _read(_netpbm("P6", dark, 65535), bits=12)
    assert np.abs(found.astype(int) - COLOUR).max() <= 1


# --- alpha


def _unset(mode: str) -> Image.Image:
    image = Image.fromarray(COLOUR).convert(mode)
    image.putalpha(Image.new("L", image.size, 0))
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_fourth_channel_that_was_never_set_hides_nothing(mode, kind):
    opaque = np.asarray(Image.fromarray(COLOUR).convert(mode[:-1]).convert("RGB"))
    assert np.array_equal(_read(_encode(_unset(mode), kind)), opaque)


def test_one_pixel_of_alpha_makes_the_others_transparent():
    image = _unset("RGBA")
    image.putpixel((0, 0), (*COLOUR[0, 0].tolist(), 255))
    found = _read(_encode(image, "PNG"))
    assert found[0, 0].tolist() == COLOUR[0, 0].tolist()
    assert found.reshape(-1, 3)[1:].max() == 0


def test_transparency_that_covers_a_whole_palette_hides_nothing():
    palette = Image.fromarray(COLOUR).quantize(4)
    shown = np.asarray(palette.convert("RGB"))
    assert np.array_equal(_read(_encode(palette, "PNG", transparency=bytes(4))), shown)
    flat = Image.new("RGB", (4, 3), (10, 20, 30))
    found = _read(_encode(flat, "PNG", transparency=(10, 20, 30)))
    assert found[0, 0].tolist() == [10, 20, 30]


def test_alpha_is_judged_over_all_strips_of_a_large_picture():
    image = Image.new("RGBA", (1024, 1100), (200, 100, 50, 0))
    large = {"max_pixels": 10**7}
    assert _read(_encode(image, "PNG", compress_level=1), **large).reshape(-1, 3).min() == 50
    image.putpixel((5, 1099), (200, 100, 50, 255))
    found = _read(_encode(image, "PNG", compress_level=1), **large)
    assert found[0].max() == 0
    assert found[1099, 5].tolist() == [200, 100, 50]


# --- kinds of files


def test_a_kind_that_is_not_allowed_is_unsupported_by_name_and_setting():
    for kind in ("GIF", "JPEG2000"):
        content = _encode(Image.fromarray(COLOUR), kind)
        said = _refused(content)
        assert kind in said
        assert "image.formats" in said
        assert _read(content, formats=(*LIMITS.formats, kind)).shape == COLOUR.shape
    png = _encode(Image.fromarray(COLOUR), "PNG")
    assert "PNG" in _refused(png, formats=("JPEG",))


def test_a_phone_s_jpeg_with_a_second_picture_in_it_is_a_jpeg():
    first, second = Image.fromarray(COLOUR), Image.new("RGB", (8, 8), (255, 0, 0))
    content = _encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.format == "MPO"
    assert np.array_equal(_read(content), _read(_encode(first, "JPEG", quality=95)))
