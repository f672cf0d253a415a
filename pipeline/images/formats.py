"""Which kind of file untrusted bytes are, and its header, before a pixel is decoded.

Pillow's plugins are called one by one, chosen by the first bytes: never one that nobody asked for,
and what a plugin says of a damaged header is not lost. A phone's JPEG with a second picture in it
(MPO) is a JPEG.
"""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import (  # noqa: F401 - importing a plugin is what makes Pillow know its format
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.repairs import mend_header

# Raster formats only: no decoder that starts another program (EPS) or follows references.
KNOWN = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "JPEG2000")
# What cameras and other people's tables hold. A GIF is a palette of 256 colours, and OpenJPEG
# builds tens of GB for 152 bytes that ask for it: they are for those who need them.
DEFAULT = KNOWN[:6]


@dataclass(frozen=True)
class Limits:
    """What an image may be and cost, and how its light is stored: of the settings `image.*`."""

    max_pixels: int = 100_000_000
    max_bytes: int = 64 * 2**20
    # Of processor time, and only in a decoding process (`pipeline.images.decoders`).
    max_seconds: float = 20.0
    formats: tuple[str, ...] = DEFAULT
    # Of a 16-bit file, how many bits carry light; None: all 16, and a file whose every pixel would
    # fit into 12 is refused.
    bits: int | None = None
    # Whether JPEG may be decoded at a reduced scale (`pipeline.images.drafts`).
    draft: bool = False


def require_bytes(content: bytes, limits: Limits) -> None:
    """Raise `ImageError` (`too_large`) for a file beyond `max_bytes`."""
    if len(content) > limits.max_bytes:
        raise ImageError(
            "too_large",
            f"the file has {len(content)} bytes, image.max_bytes is {limits.max_bytes}",
        )


def open_image(content: bytes, limits: Limits) -> Image.Image:
    """Return the image of a header; its pixels are not decoded yet.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    require_bytes(content, limits)
    name = _format_of(content[:16])
    if name is None:
        raise ImageError("unreadable", "the bytes are not an image of a known kind")
    if name not in limits.formats:
        wanted = json.dumps([*limits.formats, name])
        raise ImageError(
            "unsupported",
            f"the file is {name}, image.formats allows {', '.join(limits.formats)}; "
            f"--set image.formats='{wanted}' reads it, too",
        )
    if name == "PPM" and not _NETPBM.match(content):
        form = content[:2].decode("ascii", "replace")
        raise ImageError("unsupported", f"the file is Netpbm of the form {form}; P1 to P6 are read")
    with as_image_errors():
        image: Image.Image = Image.OPEN[name][0](io.BytesIO(content), "")
        mend_header(image, content)
    require_pixels(*image.size, limits)
    return image


def require_pixels(width: int, height: int, limits: Limits) -> None:
    """Raise `ImageError` for a picture without a pixel, or beyond `max_pixels`."""
    if width * height > limits.max_pixels:
        raise ImageError(
            "too_large",
            f"the image has {width}x{height} pixels, image.max_pixels is {limits.max_pixels}",
        )
    if width < 1 or height < 1:
        raise ImageError("unreadable", f"the image has {width}x{height} pixels")


def probe(content: bytes) -> None:
    """Raise `ImageError` unless the bytes begin as an image of a kind that could be read.

    Whether settings allow the kind and the size is for later.
    """
    open_image(content, Limits(max_pixels=2**62, max_bytes=2**62, formats=KNOWN))


def _format_of(prefix: bytes) -> str | None:
    for name in KNOWN:
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(prefix) is True:
            return name
    # What other programs call Netpbm: colour PFM, and PAM.
    return "PPM" if _OTHER_NETPBM.match(prefix) else None


_NETPBM = re.compile(rb"P[1-6][\s#]")
_OTHER_NETPBM = re.compile(rb"P[F7]\s")


@contextmanager
def as_image_errors() -> Iterator[None]:
    """Turn whatever Pillow and its codecs raise for a file into one `ImageError`.

    Anything: an AttributeError for a PNG without a palette, zlib.error, a RecursionError.
    """
    # Pillow's own guess at a decompression bomb would shadow image.max_pixels.
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(
            "too_large", "its decoding takes more memory than image.max_pixels allows for"
        ) from None
    except Exception as error:  # noqa: BLE001 - what decoders raise has no list
        if str(error) in _OTHER_FORMS:
            raise ImageError("unsupported", f"a form of TIFF that is not read: {error}") from None
        raise ImageError("unreadable", f"the image is broken: {_one_line(error)}") from None


# TIFF allows any number of channels of any depth.
_OTHER_FORMS = ("unknown pixel mode", "unknown data organization")


def _one_line(error: Exception) -> str:
    """Return an exception's text in one line; addresses differ between processes."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(error) or type(error).__name__)
    return " ".join(text.split())[:200]
