"""PGM and PPM of any maxval: Pillow reads those other than 255 sample by sample, in Python.

12 megapixels of 12 bits take it 9 s, and what it makes of 16 bits is of the mode of 32.
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.formats import Limits, require_bytes, require_pixels
from patchlake.pipeline.images.light import grey_of, range_of

# Comments may stand between the numbers. Possessive: a hostile header takes linear time.
_GAP = rb"(?:[ \t\n\v\f\r]|#[^\n\r]*+[\n\r])++"
_HEADER = re.compile(rb"P([2356])" + 3 * (_GAP + rb"(\d{1,10})") + rb"[ \t\n\v\f\r]")
_EIGHT_BITS = 255
_MOST = 65535


@dataclass(frozen=True)
class Netpbm:
    """Samples (height, width, channels) of a file, of which `top` is the highest that it allows."""

    samples: np.ndarray
    top: int


def read_netpbm(content: bytes, limits: Limits) -> Netpbm | None:
    """Return the samples; None of a file that Pillow reads well, or that is of another kind.

    Raises:
        ImageError: with status `unreadable` or `too_large`.
    """
    if content[:2] not in _CHANNELS or "PPM" not in limits.formats:
        return None
    require_bytes(content, limits)
    header = _HEADER.match(content)
    if header is None:
        return None
    kind, width, height, top = (int(number) for number in header.groups())
    is_plain = kind in _PLAIN
    if not 0 < top <= _MOST or (top == _EIGHT_BITS and not is_plain):
        return None
    require_pixels(width, height, limits)
    channels = _CHANNELS[content[:2]]
    wanted = width * height * channels
    read = _plain if is_plain else _binary
    samples = read(content, header.end(), wanted, top)
    if len(samples) < wanted:
        raise ImageError(
            "unreadable", f"the image is broken: it has {len(samples)} of {wanted} samples"
        )
    _require_range(samples, top)
    return Netpbm(samples.reshape(height, width, channels), top)


_CHANNELS = {b"P2": 1, b"P3": 3, b"P5": 1, b"P6": 3}
_PLAIN = (2, 3)
_NONE = np.empty(0, np.int64)


def _binary(content: bytes, begin: int, wanted: int, top: int) -> np.ndarray:
    sample = np.dtype(np.uint8 if top <= _EIGHT_BITS else ">u2")
    found = max(0, len(content) - begin) // sample.itemsize
    return np.frombuffer(content, sample, min(found, wanted), begin)


def _require_range(samples: np.ndarray, top: int) -> None:
    if samples.size and not 0 <= samples.min() <= samples.max() <= top:
        raise ImageError("unreadable", f"the image is broken: it has samples outside 0 to {top}")


def _plain(content: bytes, begin: int, wanted: int, _: int) -> np.ndarray:
    text = content[begin:]
    if b"#" in text:
        text = re.sub(rb"#[^\n\r]*+", b"", text)
    # Without a count: numpy returns so many, whatever was in memory, where the text has fewer.
    # And none of an empty text: there it returns one that is not in it.
    samples = np.fromstring(text.decode("latin-1"), np.int64, sep=" ") if text.strip() else _NONE
    return samples[:wanted]


def light_of(picture: Netpbm, bits: int | None) -> Image.Image:
    """Return RGB, or L of grey: `top` is white; where that is 65535, `bits` counts as in a PNG.

    Raises:
        ImageError: with status `unsupported`, as `light.grey_of`.
    """
    samples, top = picture.samples, picture.top
    if samples.shape[2] == 1 and top > _EIGHT_BITS:
        return grey_of(samples[..., 0], top=top if top < _MOST else None, bits=bits)
    if top == _MOST:
        top = range_of(int(samples.max()), bits)
    scale = np.minimum(np.arange(_MOST + 1), top)
    if top <= _EIGHT_BITS:
        levels = np.rint(scale / top * _EIGHT_BITS)  # as Pillow
    elif top < _MOST:
        levels = scale * _EIGHT_BITS // top
    else:
        levels = scale >> 8  # as Pillow of colour in PNG and TIFF
    pixels = levels.astype(np.uint8)[samples]
    return Image.fromarray(pixels[..., 0] if samples.shape[2] == 1 else pixels)
