"""Encoded, untrusted bytes to upright RGB pixels, or the reason why not.

What each kind of file means here:
  16-bit grey     the full range 0..65535 onto 0..255, whatever the content's own range is
  CMYK, palette, grey, 1-bit, YCbCr, LAB   converted to RGB by Pillow
  alpha           blended over black: a transparent pixel carries no light, whatever it hides
  EXIF rotation   applied: width, height, masks and heatmaps are those of the upright image
  animated        the first frame
  32-bit integer and float   `unsupported`: there is no range to map onto 0..255
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import (  # noqa: F401 - importing a plugin is what makes Pillow know its format
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.errors import ImageError

# Raster formats only: no decoder that starts another program (EPS) or follows references.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")


def decode_image(content: bytes, *, max_pixels: int, max_bytes: int) -> Image.Image:
    """Return an upright RGB image.

    The size is read from the header and held against `max_pixels` before a pixel is decoded.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    if len(content) > max_bytes:
        raise ImageError(
            "too_large", f"the file has {len(content)} bytes, image.max_bytes is {max_bytes}"
        )
    with _as_image_errors():
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "too_large",
                f"the image has {width}x{height} pixels, image.max_pixels is {max_pixels}",
            )
        image.load()
        return _to_rgb(_upright(image))


def is_image(content: bytes) -> bool:
    """Return whether the bytes begin as an image of a kind that `decode_image` reads."""
    try:
        with _as_image_errors():
            Image.open(io.BytesIO(content), formats=_FORMATS)
    except ImageError as error:
        return error.status != "unreadable"
    return True


def decode_mask(
    content: bytes, size: tuple[int, int], *, max_pixels: int
) -> UInt8[np.ndarray, "h w"]:
    """Return a defect mask, 0..255, resized to `size` (height, width) by nearest neighbour.

    Raises:
        ImageError: as `decode_image`.
    """
    image = decode_image(content, max_pixels=max_pixels, max_bytes=max_pixels)
    height, width = size
    return np.asarray(image.convert("L").resize((width, height), Image.Resampling.NEAREST))


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes all EXIF tags back, and fails where one is odd.
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


# By EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 65535 / 257 = 255
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            "unsupported", f"pixels of mode {image.mode} (32 bits) have no range to map onto 0..255"
        )
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, layered).convert("RGB")
    return image.convert("RGB")


# What decoders raise for damaged bytes; for example TypeError and OverflowError for an offset in
# TIFF that is a text, or beyond 63 bits.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
)


@contextmanager
def _as_image_errors() -> Iterator[None]:
    """Turn what Pillow and its codecs raise for a bad file into one `ImageError`."""
    # Pillow's own guess at a decompression bomb would shadow image.max_pixels.
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError("unreadable", "the bytes are not an image of a known kind") from None
    except _BROKEN as error:
        raise ImageError("unreadable", f"the image is broken: {error}") from None
