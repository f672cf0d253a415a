"""Defect masks, as other people draw them: what is not background is defect.

  grey, 1 bit, 16 and 32 bits   0 is background: 0/1, 0/255, class ids, ids of instances
  palette         the classes are the colours: black is background, and what is transparent; where
                  no colour in use is black, or all are (a palette that was never set), index 0
  colour          black is background
  alpha           blended over black, as in images; a mask that is drawn in alpha alone, with all
                  colours black, is its alpha
  soft edges      a mask whose levels are neither few nor ids (a JPEG, or one that was resized)
                  has its edge in the middle of its own range
Inverted masks are not guessed: nothing in a mask says that it is one.

At a frame of fewer pixels, those are defect of which half is; and a defect that has no such pixel
keeps all that it touches, so that none is lost.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pipeline.images.formats import Limits, as_image_errors, open_image
from pipeline.images.light import is_white_zero, load, require_colour_range, upright
from pipeline.images.netpbm import read_netpbm

# Of a lossless mask: more levels than classes, or instances, of one image have.
_MANY_LEVELS = 32
# Ids are flat: most of their pixels have equal neighbours. Of edges and of ringing, few have.
_FLAT = 0.3
# A lossy mask that is darker holds classes, if anything.
_DARK = 16


@dataclass(frozen=True)
class Mask:
    """What is defect, at a frame's size; and of the file, its upright (width, height)."""

    is_defect: Bool[np.ndarray, "h w"]
    size: tuple[int, int]

    @property
    def is_empty(self) -> bool:
        """Whether the file marks nothing: no defect of any size is lost at the frame."""
        return not self.is_defect.any()


def decode_mask(content: bytes, frame: tuple[int, int], limits: Limits) -> Mask:
    """Return a mask at a frame of (height, width). In this process: see `pipeline.images.decode`.

    Raises:
        ImageError: as `files.decode_image`; pixels of 32 bits are read.
    """
    with as_image_errors():
        netpbm = read_netpbm(content, limits)
        if netpbm is not None:
            marked = Image.fromarray((netpbm.samples > 0).any(axis=2).astype(np.uint8))
        else:
            image = open_image(content, limits)
            if load(image):
                require_colour_range(image, None)
            marked = Image.fromarray(_marked(image, content).astype(np.uint8))
            marked = upright(marked, image)
        return Mask(_at_frame(marked, frame), marked.size)


def _marked(image: Image.Image, content: bytes) -> np.ndarray:
    """Return what is defect, at the file's own size."""
    values = _by_palette(image) if image.mode == "P" else _by_value(image)
    if _is_soft(values, is_lossy=_is_lossy(image, content)):
        return np.asarray(values > values.max() / 2)
    return np.asarray(values != 0)


def _is_lossy(image: Image.Image, content: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in content[:64]
    return image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"


def _by_palette(image: Image.Image) -> np.ndarray:
    indexes = np.asarray(image)
    colours = np.zeros((256, 4), np.uint8)
    found = np.asarray(image.getpalette("RGBA") or [], np.uint8).reshape(-1, 4)
    colours[: len(found)] = found
    transparent = image.info.get("transparency")
    if isinstance(transparent, bytes):
        colours[: len(transparent), 3] = np.frombuffer(transparent, np.uint8)
    elif isinstance(transparent, int):
        colours[transparent, 3] = 0
    used = np.flatnonzero(np.asarray(image.histogram()[:256]))
    is_background = (colours[:, :3] == 0).all(axis=1) | (colours[:, 3] == 0)
    is_unset = len(used) > 1 and is_background[used].all()
    if is_unset or not is_background[used].any():
        is_background = np.arange(256) == 0
    levels = colours[:, :3].max(axis=1)
    # A black that is no background must not be 0.
    of_index = np.where(is_background, 0, np.maximum(levels, 1)).astype(np.uint8)
    return np.asarray(of_index[indexes])


def _by_value(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "1IF" or (image.mode == "L" and not image.has_transparency_data):
        values = np.asarray(image)
        if image.mode.startswith("I;16") and is_white_zero(image):
            return np.asarray(np.iinfo(np.uint16).max - values)
        return np.asarray(np.nan_to_num(values) if values.dtype.kind == "f" else values)
    layered = image.convert("RGBA")
    red, green, blue, alpha = (np.asarray(layered.getchannel(band)) for band in "RGBA")
    colour: np.ndarray = np.maximum(np.maximum(red, green), blue)
    lowest, highest = int(alpha.min()), int(alpha.max())
    if highest == 0 or lowest == np.iinfo(np.uint8).max:
        return colour
    if not colour.any():
        return np.asarray(alpha) if lowest < highest else colour
    # Rounded up: faint is not background.
    return np.asarray((colour.astype(np.uint16) * alpha + 254) // 255)


def _is_soft(values: np.ndarray, *, is_lossy: bool) -> bool:
    if values.dtype.kind == "b":
        return False
    top = values.max()
    if is_lossy:
        return bool(top > _DARK)
    if _levels(values) <= _MANY_LEVELS:
        return False
    # Both ways: along a straight edge soft pixels are equal, too.
    here, right, below = values[:-1, :-1], values[:-1, 1:], values[1:, :-1]
    low = (here > 0) & (here <= top / 2)
    if not low.any():
        return True
    return bool(((here == right) & (here == below))[low].mean() < _FLAT)


def _levels(values: np.ndarray) -> int:
    if values.dtype.kind != "u":
        return len(np.unique(values))
    # Without sorting 100 million of them.
    seen = np.zeros(int(values.max()) + 1, bool)
    seen[values] = True
    return int(seen.sum())


def _at_frame(marked: Image.Image, frame: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    height, width = frame
    share = np.asarray(marked.convert("F").resize((width, height), Image.Resampling.BOX))
    touched = share > 0
    # Below a half by less than the rounding of float32 sums.
    kept = share > 0.4999  # noqa: PLR2004 - a half
    grown = _grown(kept, touched)
    return np.asarray(kept | (touched & ~grown))


def _grown(seeds: Bool[np.ndarray, "h w"], within: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Return the connected pieces of `within`, corners counting, that hold a seed."""
    grown = seeds
    while True:
        wide = np.pad(grown, 1)
        rows = wide[:-2] | wide[1:-1] | wide[2:]
        reached = (rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]) & within
        if np.array_equal(reached, grown):
            return grown
        grown = reached
