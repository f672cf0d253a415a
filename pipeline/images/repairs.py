"""What Pillow 13 reads as something else, in silence: mended before pixels are decoded, or refused.

BMP      a palette of two greys, or of 16 at 4 bits, is read as pixels of another width
TIFF     16-bit planes as if they had 8 bits; signed bytes as unsigned; strips that are missing as
         black; a reduced first page, which raw files of cameras have, as the picture
PNG      a transparent grey of 2, 4 bits as if it had 8; of 16-bit colour, one that no pixel has
`tests/images/test_repairs.py` says when Pillow no longer does.
"""

import sys

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    ImagePalette,
    PngImagePlugin,
    TiffImagePlugin,
)

from patchlake.pipeline.errors import ImageError

_BYTE = 8


def mend_header(image: Image.Image, content: bytes) -> None:
    """Mend what the header of an opened file says, before its size is looked at.

    Raises:
        ImageError: with status `unsupported`.
    """
    if isinstance(image, BmpImagePlugin.BmpImageFile):
        _mend_palette(image, content)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _to_full_page(image, content)


def mend_pixels(image: Image.Image) -> None:
    """Mend how the pixels of an opened file will be decoded.

    Raises:
        ImageError: with status `unsupported` or `unreadable`.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        _mend_transparency(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _require_unsigned(image)
        if _is_deep_planar(image):
            _mend_planes(image)
        _require_strips(image)


def _mend_palette(image: BmpImagePlugin.BmpImageFile, content: bytes) -> None:
    """Have few greys read by their palette: Pillow forgets how many bits a pixel has with them."""
    is_core = content[14] == _CORE_HEADER
    bits = content[24 if is_core else 28]
    if not ((image.mode == "1" and bits > 1) or (image.mode == "L" and bits < _BYTE)):
        return
    greys = (0, 255) if image.mode == "1" else range(2**bits)
    image.palette = ImagePalette.raw("RGB", bytes(np.repeat(greys, 3).astype(np.uint8)))
    image._mode = "P"  # noqa: SLF001 - Pillow has no other way to say it
    (tile,) = image.tile
    assert isinstance(tile.args, tuple)
    image.tile = [tile._replace(args=("P" if bits == _BYTE else f"P;{bits}", *tile.args[1:]))]


_CORE_HEADER = 12


def _to_full_page(image: TiffImagePlugin.TiffImageFile, content: bytes) -> None:
    """Go to the first page that is no thumbnail, as the first one may be by its own tags."""
    if content.startswith(_CR2):
        raise ImageError("unsupported", "the file is CR2, a camera's raw form of TIFF")
    page = 0
    while _is_reduced(image):
        page += 1
        try:
            image.seek(page)
        except EOFError:
            raise ImageError(
                "unsupported",
                "a form of TIFF that is not read: all its pages are marked as reduced pictures, "
                "as in raw files of cameras (DNG, NEF, ARW)",
            ) from None


def _is_reduced(image: TiffImagePlugin.TiffImageFile) -> bool:
    kind, old_kind = (int(image.tag_v2.get(tag, 0)) for tag in (_NEW_SUBFILE, _OLD_SUBFILE))
    return bool(kind & _REDUCED) or old_kind == _OLD_REDUCED


# Its first page follows; two of the bytes may be pixels of another TIFF.
_CR2 = b"II*\0\x10\0\0\0CR\x02"
_NEW_SUBFILE, _OLD_SUBFILE = 254, 255
_REDUCED, _OLD_REDUCED = 1, 2


def _mend_transparency(image: PngImagePlugin.PngImageFile) -> None:
    """Have the transparent value on the scale of the pixels."""
    value = image.info.get("transparency")
    if value is None or not image.tile:
        return
    rawmode = str(image.tile[0].args)
    if rawmode in _TOPS:
        # Upper bits count for nothing, says the specification.
        image.info["transparency"] = (value & _TOPS[rawmode]) * 255 // _TOPS[rawmode]
    elif image.mode == "RGB" and ";16" in rawmode:
        raise ImageError(
            "unsupported",
            "a PNG of 16-bit colour with a transparent colour (tRNS) is not read: "
            "write it with an alpha channel, or with 8 bits a channel",
        )


_TOPS = {"L;2": 3, "L;4": 15, "L": 255}


def _require_unsigned(image: TiffImagePlugin.TiffImageFile) -> None:
    formats = np.ravel(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, 1))
    depths = np.ravel(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1))
    if _SIGNED in formats and depths.max() <= _BYTE:
        raise ImageError("unsupported", "pixels that are signed bytes have no range of light")


_SIGNED = 2


def _is_deep_planar(image: TiffImagePlugin.TiffImageFile) -> bool:
    return _is_planar(image) and max(_depths(image)) > _BYTE


def _is_planar(image: TiffImagePlugin.TiffImageFile) -> bool:
    planes = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
    return bool(planes == _SEPARATE) and len(_depths(image)) > 1


_SEPARATE = 2


def _depths(image: TiffImagePlugin.TiffImageFile) -> list[int]:
    """Return the bits of each sample of a pixel; a file may name them once for all."""
    depths = np.ravel(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1)).tolist()
    samples = int(image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    return depths * samples if len(depths) == 1 else depths


def _mend_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Name the samples of planes: Pillow 13 reads those of 16 bits as if they had 8, in silence.

    `tests/images/test_light.py` says when it no longer does: this adds ";16" once more then.
    """
    if image.mode == "RGB" and all(tile.codec_name == "libtiff" for tile in image.tile):
        return
    if image.mode not in ("RGB", "RGBA") or any(tile.codec_name != "raw" for tile in image.tile):
        raise ImageError(
            "unsupported", f"16-bit planes of {image.mode} in this form of TIFF are not read"
        )
    order = ";16L" if image.tag_v2.prefix == b"II" else ";16B"
    mended = []
    for tile in image.tile:
        assert isinstance(tile.args, tuple)
        mended.append(tile._replace(args=(tile.args[0] + order, *tile.args[1:])))
    image.tile = mended


def _require_strips(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse strips or tiles that do not hold the picture; those of libtiff it refuses itself."""
    if any(tile.codec_name != "raw" for tile in image.tile):
        return
    depths = _depths(image)
    planes, bits = (len(depths), depths[0]) if _is_planar(image) else (1, sum(depths))
    boxes = np.array([tile.extents for tile in image.tile], np.int64).reshape(-1, 4)
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    covered, wanted = int((widths * heights).sum()), image.width * image.height * planes
    if covered < wanted:
        _break(f"its strips or tiles hold {covered} of {wanted} pixels")
    if any(tile.offset == 0 for tile in image.tile):
        _break("a strip or tile has no place in the file")
    counts = _byte_counts(image)
    if counts is None:
        return  # old files have none, and need none
    if len(counts) < len(boxes):
        _break(f"it has {len(boxes)} strips or tiles, and sizes of {len(counts)}")
    # Where each covers the whole picture, Pillow reads the last one.
    counts = counts[-1:] if len(boxes) == 1 else counts[: len(boxes)]
    if (counts < (widths * bits + 7) // 8 * heights).any():
        _break("a strip or tile has fewer bytes than its pixels")


def _byte_counts(image: TiffImagePlugin.TiffImageFile) -> np.ndarray | None:
    for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS):
        if tag in image.tag_v2:
            return np.ravel(image.tag_v2[tag]).astype(np.int64)
    return None


def _break(reason: str) -> None:
    raise ImageError("unreadable", f"the image is broken: {reason}")


def to_lower_bytes(image: ImageFile.ImageFile) -> str | None:
    """Have an opened, mended image of 16-bit colour decode to the lower byte of each sample.

    Returns:
        The names of its bands that will hold them; None if they cannot be read.
    """
    mended = []
    for tile in image.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        kind, _, order = str(args[0]).partition(";16")
        if kind == "LA" and order == "B":
            # Pillow has no other order of it. As RGBA, its bytes are L, lower L, A, lower A.
            rawmode = "RGBA"
        elif kind in _PLAIN and order in _OTHER_ORDER:
            rawmode = f"{kind};16{_OTHER_ORDER[order]}"
        else:
            return None
        other = (rawmode, *args[1:]) if isinstance(tile.args, tuple) else rawmode
        mended.append((tile._replace(args=other), "GA" if kind == "LA" else image.mode))
    image.tile = [tile for tile, _ in mended]
    return mended[0][1] if mended else None


# Colours that are themselves: not multiplied by alpha, nor inks.
_PLAIN = ("RGB", "RGBA", "RGBX", "R", "G", "B", "A")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
