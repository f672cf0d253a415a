"""Fuzz: mutated image files, as images, masks and headers, here and in a decoding process.

Files are damaged byte by byte, and by their structure: chunks and segments repeated, cut, swapped,
and given other lengths; numbers of headers set to extremes. A case may end in `ImageError` only.
"""

import contextlib
import io
import random
import re
import struct
import zlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.decode import decode_mask, decode_picture, is_image
from patchlake.pipeline.images.formats import KNOWN, Limits
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import read_picture
from tests.fuzz.harness import main

LIMITS = Limits(max_pixels=300_000, max_bytes=2**20, max_seconds=2, formats=KNOWN)
GEOMETRIES = (Geometry((16, 16), None), Geometry(12, 12))
# Of which a file of 20 x 30 pixels, and many a damaged one, is decoded at a reduced scale.
SMALL = (Geometry((3, 2), None),)
DRAFTS = replace(LIMITS, draft=True)
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def case(random: random.Random) -> None:
    content = _mutated(random)
    with contextlib.suppress(ImageError):
        decode_picture(content, LIMITS, GEOMETRIES, photo=random.random() < 0.5)
    with contextlib.suppress(ImageError):
        decode_mask(content, (8, 8), LIMITS)
    with contextlib.suppress(ImageError):
        decode_picture(content, DRAFTS, SMALL, photo=True)
    is_image(content, LIMITS)
    if b"\xff\x4f\xff\x51" not in content and b"jP" not in content[:16]:
        # In this process nothing bounds OpenJPEG.
        with contextlib.suppress(ImageError):
            read_picture(content, LIMITS, GEOMETRIES, photo=True)


@lru_cache(maxsize=1)
def samples() -> tuple[bytes, ...]:
    noise = np.random.default_rng(0)
    photo = Image.fromarray(noise.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    deep = Image.fromarray(noise.integers(0, 2**16, (20, 30)).astype(np.uint16))
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "make"})
    forms = [(photo, "JPEG", {"exif": exif}), (photo, "JPEG", {"progressive": True})]
    forms += [(photo.convert("CMYK"), "JPEG", {}), (photo.convert("L"), "JPEG", {})]
    forms += [(photo, "MPO", {"save_all": True, "append_images": [photo]})]
    forms += [(photo.convert(mode), "PNG", {"exif": exif}) for mode in ("RGB", "RGBA", "LA", "1")]
    forms += [(photo.quantize(9), "PNG", {"transparency": 3}), (deep, "PNG", {})]
    packings = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_ccitt")
    forms += [(photo, "TIFF", {"compression": packing, "exif": exif}) for packing in packings[:5]]
    forms += [(photo.convert("1"), "TIFF", {"compression": "group4"}), (deep, "TIFF", {})]
    forms += [(photo.quantize(9), kind, {}) for kind in ("BMP", "GIF", "TIFF")]
    forms += [(photo, "BMP", {}), (photo, "PPM", {}), (deep, "PPM", {}), (photo, "JPEG2000", {})]
    forms += [(photo.convert("RGBA"), "WEBP", {"lossless": flag}) for flag in (False, True)]
    found = [b"P2\n# plain\n3 2\n4095\n0 1 2 3 4 4095\n", b"P3 1 1 255 1 2 3", b"P1 2 2 1 0 0 1"]
    for image, kind, options in forms:
        sink = io.BytesIO()
        image.save(sink, kind, **options)
        found.append(sink.getvalue())
    return tuple(found)


def _mutated(random: random.Random) -> bytes:
    content = bytearray(random.choice(samples()))
    for _ in range(random.randrange(1, 6)):
        random.choice(MUTATIONS)(content, random)
    return bytes(_with_checksums(content) if random.random() < 0.8 else content)


def _place(content: bytearray, random: random.Random) -> int:
    # Headers and tags, where damage does most, are in the first bytes or the last.
    near = min(len(content), random.choice((32, 300, 10**9)))
    place = random.randrange(near) if near else 0
    return place if random.random() < 0.8 else len(content) - 1 - place


def _bytes(content: bytearray, random: random.Random) -> None:
    place = max(0, _place(content, random))
    content[place : place + 1] = random.randbytes(1)


def _number(content: bytearray, random: random.Random) -> None:
    place, value = max(0, _place(content, random)), random.choice(EXTREMES)
    kind = random.choice(("<H", ">H", "<I", ">I"))
    size = struct.calcsize(kind)
    content[place : place + size] = struct.pack(kind, value & (2 ** (8 * size) - 1))


def _cut(content: bytearray, random: random.Random) -> None:
    place = max(0, _place(content, random))
    del content[place : place + random.choice((1, 4, 40, 10**9))]


def _repeat(content: bytearray, random: random.Random) -> None:
    begin, end = sorted(max(0, _place(content, random)) for _ in range(2))
    content[begin:begin] = content[begin:end] * random.choice((1, 3, 50))


def _pieces(content: bytearray, random: random.Random) -> None:
    """Take pieces that begin with a marker or a chunk's length out, twice in, or elsewhere."""
    starts = [m.start() for m in re.finditer(rb"\xff[\xc0-\xfe]|\0\0..[A-Za-z]{4}", bytes(content))]
    if len(starts) < 3:
        return
    first = random.randrange(len(starts) - 1)
    piece = content[starts[first] : starts[first + 1]]
    if random.random() < 0.3:
        del content[starts[first] : starts[first + 1]]
    else:
        place = random.choice(starts)
        content[place:place] = piece * random.choice((1, 2, 100))


def _tag(content: bytearray, random: random.Random) -> None:
    """Overwrite one entry of a TIFF's first directory."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None or len(content) < 8:
        return
    at = struct.unpack(order + "I", content[4:8])[0]
    entry = at + 2 + 12 * random.randrange(12)
    if entry + 12 <= len(content):
        tag = random.choice((256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 324))
        values = (tag, random.randrange(1, 14), random.choice(EXTREMES), random.choice(EXTREMES))
        content[entry : entry + 12] = struct.pack(order + "HHII", *values)


MUTATIONS = (_bytes, _bytes, _number, _cut, _repeat, _pieces, _tag)


def _with_checksums(content: bytearray) -> bytearray:
    """Make a PNG's checksums right, so that damage reaches what lies behind them."""
    if content[:4] != b"\x89PNG":
        return content
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return content


if __name__ == "__main__":
    main("tests.fuzz.decode", case)
