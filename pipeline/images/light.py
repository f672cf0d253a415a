"""What pixels mean: the values of a file as upright 8-bit grey or RGB, or the reason why not.

16-bit grey     the full range 0..65535 onto 0..255, whatever the content's own range is, or
                the lower `image.bits` of it. Where that is not set, a file whose brightest pixel
                would fit into 12 bits is `unsupported`: it is either of a camera of 10 or 12
                bits, and would be nearly black, or very dark, and nothing in the file says
                which. To guess by each picture's own maximum would give two pictures of one
                camera two scales. With `image.bits` set, a brighter pixel is `unsupported`.
other ranges    where the file says its own, it counts: a PGM's maxval, a TIFF of 12 bits
MINISWHITE      inverted, at 16 bits as at 8
16-bit colour   the upper 8 bits, which is all that Pillow reads of PNG and TIFF (at most one
                level from what grey would give). Where they hold less than 1/16 of the range,
                or `image.bits` says that they do: `unsupported`; and where a PNG has a colour that
                is transparent, which the lower 8 bits may tell from others
grey, 1-bit     grey, which is resized in a third of the time of RGB and to the same values
CMYK, palette, YCbCr, LAB   converted to RGB by Pillow
alpha           blended over black: a transparent pixel carries no light, whatever it hides,
                and whatever the bits of a PNG's transparent grey are. But where every pixel is
                transparent, in a fourth channel or by a palette, nobody meant a black picture:
                the channel was never set, and the colours count
EXIF rotation   applied: width, height, masks and heatmaps are those of the upright image
animated        the first frame
several pages   the first that is no reduced picture by its own tags
32-bit integer, float, signed   `unsupported`: there is no range to map onto 0..255
"""

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.repairs import mend_pixels

_TOP = 65535
# 12 bits: what fits into them is a sixteenth of the range, and is black to the eye.
_LEAST = 4096
# Rows are converted a megapixel at a time, so that no step holds a second whole picture.
_STRIP_PIXELS = 2**20


def to_light(image: Image.Image, bits: int | None) -> Image.Image:
    """Return a file's opened image, upright and of mode RGB, or L where it is grey. Decodes it.

    The result may be the opened image itself.

    Raises:
        ImageError: with status `unsupported`.
        Exception: whatever a decoder raises for damaged bytes.
    """
    if load(image):
        require_colour_range(image, bits)
    return upright(_light(image, bits), image)


def load(image: Image.Image) -> bool:
    """Decode an opened image's pixels; return whether it has colours that are 16 bits in the file.

    Raises:
        ImageError: with status `unsupported` or `unreadable`.
        Exception: whatever a decoder raises for damaged bytes.
    """
    mend_pixels(image)
    tiles = getattr(image, "tile", ())
    is_deep = len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in tiles)
    image.load()
    return is_deep


def require_colour_range(image: Image.Image, bits: int | None) -> None:
    """Refuse 16-bit colour of which too little is in the upper 8 bits."""
    if bits not in (None, 16):
        raise ImageError(
            "unsupported",
            f"of 16-bit colour only the upper 8 bits are read, image.bits is {bits}; "
            "write such pictures with 8 bits a channel",
        )
    channels = image.getbands()
    brightest = max(
        channel[1] if isinstance(channel, tuple) else 0
        for channel, name in zip(image.getextrema(), channels, strict=True)
        if name != "A"
    )
    if bits is None and brightest < _LEAST >> 8:
        raise ImageError(
            "unsupported",
            f"the brightest of its 16-bit colours is below {(brightest + 1) << 8}: write pictures "
            "of a camera of 10 or 12 bits with 8 bits a channel, or set image.bits=16 where they "
            "are that dark",
        )


def _light(image: Image.Image, bits: int | None) -> Image.Image:
    if image.mode.startswith("I;16"):
        own = _own_top(image)
        is_inverted = is_white_zero(image)
        return grey_of(_shown(image), top=own, bits=bits, is_inverted=is_inverted)
    if image.mode in ("I", "F"):
        raise ImageError(
            "unsupported",
            f"pixels of mode {image.mode} (of 32 bits, or signed) have no range to map onto 0..255",
        )
    if image.has_transparency_data:
        return _over_black(image)
    if image.mode in ("L", "RGB"):
        # Without Pillow's copy, which takes as long as half of the decoding of a large JPEG.
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _shown(image: Image.Image) -> np.ndarray:
    """Return 16-bit pixels; a transparent one is 0, unless all are (see `_over_black`)."""
    values = np.asarray(image)
    if "transparency" not in image.info:
        return values
    is_hidden = values == image.info["transparency"]
    return values if is_hidden.all() else np.where(is_hidden, np.uint16(0), values)


def _own_top(image: Image.Image) -> int | None:
    """Return the highest value that the file itself speaks of, if it is below 65535."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        depth = int(np.ravel(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 16))[0])
        return 2**depth - 1 if depth < 16 else None  # noqa: PLR2004 - of mode I;16
    return None


def is_white_zero(image: Image.Image) -> bool:
    """Return whether a TIFF of 16 bits is to be inverted, which Pillow does up to 8 bits only."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    )


def grey_of(
    values: np.ndarray, *, top: int | None, bits: int | None, is_inverted: bool = False
) -> Image.Image:
    """Return mode L of grey values (height, width) of 16 bits.

    Args:
        values: Unsigned integers below 65536.
        top: What stands for white, where the file says so; else `bits` or the full range.
        bits: The setting `image.bits`.
        is_inverted: Whether 0 is white.
    """
    top = top or range_of(int(values.max()), bits)
    light = np.minimum(np.arange(_TOP + 1), top)
    # 65535 / 257 = 255
    levels = ((top - light if is_inverted else light) * 255 // top).astype(np.uint8)
    return Image.fromarray(levels[values])


def range_of(brightest: int, bits: int | None) -> int:
    """Return what stands for white among 16-bit pixels, or refuse what nobody can tell."""
    if bits is None:
        if 0 < brightest < _LEAST:
            raise ImageError(
                "unsupported",
                f"the brightest of its 16-bit pixels is {brightest}: set image.bits=12 (or 10, or "
                "what the camera has), or image.bits=16 where pictures are that dark",
            )
        return _TOP
    top: int = 2**bits - 1
    if brightest > top:
        raise ImageError(
            "unsupported",
            f"the brightest of its 16-bit pixels is {brightest}, image.bits={bits} ends at {top}",
        )
    return top


def _over_black(image: Image.Image) -> Image.Image:
    blended, colours = (Image.new("RGB", image.size) for _ in range(2))
    is_unset = True
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        layered = as_rgba(image.crop(box))
        is_unset = is_unset and layered.getchannel("A").getextrema() == (0, 0)
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        blended.paste(Image.alpha_composite(black, layered).convert("RGB"), box)
        if is_unset:
            colours.paste(layered.convert("RGB"), box)
    return colours if is_unset else blended


def as_rgba(image: Image.Image) -> Image.Image:
    """Return RGBA of any mode up to 8 bits; Pillow has no direct way from a grey times alpha."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Return an image turned as the EXIF orientation of the file's loaded image says."""
    # Not ImageOps.exif_transpose: it also writes all EXIF tags back, and fails where one is odd.
    orientation = orientation_of(opened)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def orientation_of(opened: Image.Image) -> int:
    """Return the EXIF orientation of a file's opened image: 1 to 8, and 1 where it has none."""
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return int(orientation) if orientation in _TURNS else 1


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
