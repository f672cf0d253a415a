"""What Pillow reads as something else, in silence, is read as its owner means it, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.masks import decode_mask

LIMITS = Limits(max_pixels=10**6)
INDEXES = np.arange(35).reshape(5, 7) % 3 % 2


def _read(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(content, LIMITS))[..., 0]


def _refused(content: bytes, status: str) -> str:
    with pytest.raises(ImageError) as raised:
        _read(content)
    assert raised.value.status == status
    return str(raised.value)


# --- BMP


def _bmp(indexes: np.ndarray, bits: int, greys: list[int], *, is_core: bool = False) -> bytes:
    height, width = indexes.shape
    bytes_a_row = (width * bits + 31) // 32 * 4
    rows = b""
    for row in indexes[::-1]:
        each = "".join(f"{index:0{bits}b}" for index in row).ljust(bytes_a_row * 8, "0")
        rows += int(each, 2).to_bytes(bytes_a_row, "big")
    if is_core:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
        colours = b"".join(bytes([grey] * 3) for grey in greys)
    else:
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 0, 0,
                           len(greys), 0)  # fmt: skip
        colours = b"".join(bytes([grey] * 3 + [0]) for grey in greys)
    begin = 14 + len(head) + len(colours)
    whole = struct.pack("<IHHI", begin + len(rows), 0, 0, begin) + head + colours + rows
    return b"BM" + whole


def _bmp_rle(bits: int, greys: list[int]) -> bytes:
    rows = b""
    for row in INDEXES[::-1]:
        rows += b"".join(bytes([1, index << 4 if bits == 4 else index]) for index in row)
        rows += b"\0\0"
    whole = bytearray(_bmp(INDEXES, bits, greys))
    begin = struct.unpack_from("<I", whole, 10)[0]
    struct.pack_into("<I", whole, 30, 1 if bits == 8 else 2)
    return bytes(whole[:begin]) + rows + b"\0\1"


# Bits a pixel, and the palette.
PALETTES = {
    "1 bit": (1, [0, 255]),
    "1 bit, white first": (1, [255, 0]),
    "4 bits, black and white": (4, [0, 255]),
    "4 bits, white first": (4, [255, 0]),
    "4 bits, ramp to 15": (4, list(range(16))),
    "4 bits, ramp to 255": (4, list(range(0, 256, 17))),
    "4 bits, three greys": (4, [0, 1, 2]),
    "8 bits, black and white": (8, [0, 255]),
    "8 bits, white first": (8, [255, 0]),
    "8 bits, two colours, nearly": (8, [0, 254]),
    "8 bits, ramp to 15": (8, list(range(16))),
    "8 bits, ramp to 255": (8, list(range(256))),
}


@pytest.mark.parametrize("form", PALETTES)
def test_a_bitmap_of_few_greys_is_read_by_its_palette(form):
    bits, greys = PALETTES[form]
    for width in (1, 2, 7):
        indexes = INDEXES[:, :width]
        assert np.array_equal(_read(_bmp(indexes, bits, greys)), np.take(greys, indexes))
    if len(greys) == 2**bits:
        content = _bmp(INDEXES, bits, greys, is_core=True)
        assert np.array_equal(_read(content), np.take(greys, INDEXES))
    if bits > 1:
        assert np.array_equal(_read(_bmp_rle(bits, greys)), np.take(greys, INDEXES))
    if greys[0] == 0:
        found = decode_mask(_bmp(INDEXES, bits, greys), INDEXES.shape, LIMITS)
        assert np.array_equal(found.is_defect, INDEXES > 0)


# --- TIFF


def _tiff(data: bytes, *pages: dict[int, int | list[int]]) -> bytes:
    """A TIFF whose data begin at byte 8; pages of tags, all of kind LONG."""
    whole = bytearray(b"II*\0" + bytes(4) + data)
    link = 4
    for page in pages:
        entries = b""
        for tag, value in sorted(page.items()):
            values = value if isinstance(value, list) else [value]
            packed = struct.pack(f"<{len(values)}I", *values)
            if len(values) > 1:
                packed, at = struct.pack("<I", len(whole)), packed
                whole += at
            entries += struct.pack("<HHI", tag, 4, len(values)) + packed
        struct.pack_into("<I", whole, link, len(whole))
        whole += struct.pack("<H", len(page)) + entries + bytes(4)
        link = len(whole) - 4
    return bytes(whole)


def _page(side: int, begins: int | list[int], counts: int | list[int], **more: int) -> dict:
    named = {"width": 256, "height": 257, "bits": 258, "kind": 254, "old": 255, "rows": 278,
             "sample": 339, "extra": 338, "channels": 277, "planes": 284, "tile": 322}  # fmt: skip
    page = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: begins, 277: 1, 278: side,
            279: counts}  # fmt: skip
    page |= {named[name]: value for name, value in more.items()}
    if "tile" in more:
        page |= {323: more["tile"], 324: begins, 325: counts}
        del page[273], page[278], page[279]
    return page


GREY = np.arange(1, 65, dtype=np.uint8).reshape(8, 8)
QUARTERS = b"".join(GREY[y : y + 4, x : x + 4].tobytes() for y in (0, 4) for x in (0, 4))
WHOLE = {
    "one strip": (GREY.tobytes(), _page(8, 8, 64)),
    "two strips": (GREY.tobytes(), _page(8, [8, 40], [32, 32], rows=4)),
    "three strips": (GREY.tobytes(), _page(8, [8, 32, 56], [24, 24, 16], rows=3)),
    "rows never set": (GREY.tobytes(), _page(8, 8, 64, rows=2**32 - 1)),
    "more bytes than needed": (GREY.tobytes(), _page(8, 8, 999)),
    "tiles": (QUARTERS, _page(8, [8, 24, 40, 56], [16] * 4, tile=4)),
}


@pytest.mark.parametrize("form", WHOLE)
def test_strips_and_tiles_that_hold_the_picture_are_read(form):
    data, page = WHOLE[form]
    assert np.array_equal(_read(_tiff(data, page)), GREY)


def test_strips_without_a_size_are_read():
    page = _page(8, 8, 64)
    del page[279]
    assert np.array_equal(_read(_tiff(GREY.tobytes(), page)), GREY)


BROKEN = {
    "one of two strips": _page(8, 8, 32, rows=4),
    "no rows": _page(8, 8, 64, rows=0),
    "no place": _page(8, 0, 64),
    "no place of the second": _page(8, [8, 0], [32, 32], rows=4),
    "no bytes": _page(8, 8, 0),
    "no bytes of the second": _page(8, [8, 40], [32, 0], rows=4),
    "fewer bytes": _page(8, 8, 63),
    "fewer bytes of the first": _page(8, [8, 40], [31, 32], rows=4),
    "one size of two": _page(8, [8, 40], 32, rows=4),
    "beyond the file": _page(8, 10**6, 64),
    "three of four tiles": _page(8, [8, 24, 40], [16] * 3, tile=4),
    "a tile without a place": _page(8, [8, 24, 0, 56], [16] * 4, tile=4),
    "a tile of fewer bytes": _page(8, [8, 24, 40, 56], [16, 16, 16, 9], tile=4),
    "one of three planes": _page(4, 8, 16, channels=3, planes=2) | {262: 2, 258: [8, 8, 8]},
}


@pytest.mark.parametrize("form", BROKEN)
def test_strips_and_tiles_that_lack_pixels_are_unreadable(form):
    assert "broken" in _refused(_tiff(GREY.tobytes(), BROKEN[form]), "unreadable")


THUMBNAIL, FULL = _page(2, 8, 4), _page(4, 12, 16)
DATA = bytes([50]) * 4 + bytes([200]) * 16


@pytest.mark.parametrize("mark", [{254: 1}, {254: 3}, {255: 2}])
def test_a_page_that_is_marked_as_a_thumbnail_is_passed_over(mark):
    for pages in ([THUMBNAIL | mark, FULL], [THUMBNAIL | mark, THUMBNAIL | mark, FULL | {254: 0}]):
        assert _read(_tiff(DATA, *pages)).tolist() == [[200] * 4] * 4
    assert _read(_tiff(DATA, FULL, THUMBNAIL | mark)).shape == (4, 4)
    for pages in ([THUMBNAIL | mark], [THUMBNAIL | mark, FULL | mark]):
        assert "reduced" in _refused(_tiff(DATA, *pages), "unsupported")


def test_the_full_page_is_held_against_max_pixels():
    content = _tiff(DATA, THUMBNAIL | {254: 1}, FULL)
    with pytest.raises(ImageError, match="4x4") as raised:
        decode_image(content, Limits(max_pixels=15))
    assert raised.value.status == "too_large"


def test_a_camera_s_cr2_is_unsupported_by_name():
    content = _tiff(b"CR\x02\0" + bytes(4), _page(2, 8, 4))
    assert "CR2" in _refused(content, "unsupported")
    assert _read(_tiff(b"CR\x02\0", _page(2, 8, 4))).tolist() == [[67, 82], [2, 0]]


def test_signed_bytes_are_unsupported():
    samples = np.array([[-1, 127], [0, -128]], np.int8).tobytes()
    assert "signed" in _refused(_tiff(samples, _page(2, 8, 4, sample=2)), "unsupported")
    assert _read(_tiff(samples, _page(2, 8, 4, sample=1))).tolist() == [[255, 127], [0, 128]]


def test_grey_that_alpha_is_multiplied_into_is_the_light_that_is_left():
    samples = bytes([100, 255, 60, 120, 0, 0, 255, 255])
    page = _page(2, 8, 8, channels=2, extra=1) | {258: [8, 8]}
    content = _tiff(samples, page)
    assert np.abs(_read(content).astype(int) - [[100, 60], [0, 255]]).max() <= 1
    found = decode_mask(content, (2, 2), LIMITS)
    assert found.is_defect.tolist() == [[True, True], [False, True]]


# --- PNG


def _png(depth: int, colour_type: int, row: bytes, transparent: bytes, width: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)),
              (b"IEND", b""))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


# By bits a pixel: black and white, and the value of white.
DEPTHS = {
    1: (b"\x40", b"\0\1"),
    2: (b"\x30", b"\0\3"),
    4: (b"\x0f", b"\0\x0f"),
    8: (b"\x00\xff", b"\0\xff"),
    16: (b"\0\0\xff\xff", b"\xff\xff"),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_transparent_grey_is_dark_whatever_the_bits(depth):
    row, white = DEPTHS[depth]
    assert _read(_png(depth, 0, row, white)).tolist() == [[0, 0]]
    assert _read(_png(depth, 0, row, b"\0\0")).tolist() == [[0, 255]]
    # As a mask: black is drawn on it.
    assert decode_mask(_png(depth, 0, row, white), (1, 2), LIMITS).is_defect.tolist() == [
        [True, False]
    ]


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_a_transparent_grey_that_covers_a_picture_hides_nothing(depth):
    white = DEPTHS[depth][1]
    assert _read(_png(depth, 0, b"\xff" * 4, white)).tolist() == [[255, 255]]


@pytest.mark.parametrize("depth", [2, 4])
def test_a_transparent_grey_in_between_hides_its_own_level_alone(depth):
    top = 2**depth - 1
    row = int(f"{top:0{depth}b}{1:0{depth}b}".ljust(8, "0"), 2).to_bytes(1, "big")
    assert _read(_png(depth, 0, row, b"\0\1")).tolist() == [[255, 0]]


def test_a_transparent_sentinel_of_16_bits_is_no_light():
    row = struct.pack(">2H", 4095, 65535)
    content = _png(16, 0, row, b"\xff\xff")
    assert "4095" in _refused(content, "unsupported")
    found = np.asarray(decode_image(content, Limits(bits=12)))
    assert found[0, :, 0].tolist() == [255, 0]


def test_a_transparent_16_bit_colour_is_unsupported():
    row = struct.pack(">6H", *[60000] * 3, *[30000] * 3)
    content = _png(16, 2, row, struct.pack(">3H", *[30000] * 3))
    assert "tRNS" in _refused(content, "unsupported")
    with pytest.raises(ImageError, match="tRNS"):
        decode_mask(content, (1, 2), LIMITS)


# --- Netpbm


@pytest.mark.parametrize("kind", ["P5", "P6"])
@pytest.mark.parametrize(("top", "sample"), [(100, "u1"), (254, "u1"), (1023, ">u2")])
def test_a_sample_above_its_maxval_is_unreadable(kind, top, sample):
    head = f"{kind} 2 1 {top}\n".encode()
    samples = np.full(6 if kind == "P6" else 2, top)
    assert _read(head + samples.astype(sample).tobytes()).tolist() == [[255, 255]]
    samples[1] += 1
    assert f"0 to {top}" in _refused(head + samples.astype(sample).tobytes(), "unreadable")


def test_pillow_still_needs_these_repairs():
    """Where this fails, Pillow has mended one: `pipeline.images.repairs` may drop it."""
    with Image.open(io.BytesIO(_bmp(INDEXES, 8, [0, 255]))) as bitmap:
        assert bitmap.tile[0].args[0] == "1"
    with Image.open(io.BytesIO(_png(4, 0, b"\x0f", b"\0\x0f"))) as grey:
        assert grey.info["transparency"] == 15
    with Image.open(io.BytesIO(_tiff(GREY.tobytes(), BROKEN["one of two strips"]))) as half:
        assert np.asarray(half)[4:].max() == 0
