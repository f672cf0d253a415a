"""Defect masks, as other people draw them: what is not background is defect.

  grey, 1 bit, 16 and 32 bits   0 is background: 0/1, 0/255, class ids, ids of instances
  numbers below   are refused, as are floats that are not finite: nobody can tell what they mean
  palette         the classes are the colours: black is background, and what is transparent; where
                  no colour in use is black, or all are (a palette that was never set), index 0
  colour          black is background; of 16 bits, all count
  alpha           blended over black, as in images; where all that is seen is black, it is painted
                  in alpha alone, whatever colour the transparent ground hides
  soft edges      a mask whose levels are neither few nor ids (a JPEG, or one that was resized)
                  has its edge in the middle of its own range: see `pipeline.images.edges`
Inverted masks are not guessed: nothing in a mask says that it is one.

At a frame of fewer pixels, those are defect of which half is; and a defect that has no such pixel
keeps all that it touches, so that none is lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFile

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.edges import edge_of
from patchlake.pipeline.images.formats import Limits, as_image_errors, open_image
from patchlake.pipeline.images.light import as_rgba, is_white_zero, load, upright
from patchlake.pipeline.images.netpbm import read_netpbm
from patchlake.pipeline.images.repairs import mend_pixels, to_lower_bytes


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
        ImageError: as `files.decode_image`; pixels of 32 bits are read, if none is negative or
            not finite, and dark 16-bit colour is.
    """
    with as_image_errors():
        netpbm = read_netpbm(content, limits)
        if netpbm is not None:
            marked = Image.fromarray((netpbm.samples > 0).any(axis=2).astype(np.uint8))
        else:
            image = open_image(content, limits)
            is_deep = load(image)
            values = _deep(image, content, limits) if is_deep else _values(image)
            _require_ground(values)
            is_defect = values > edge_of(values, is_lossy=_is_lossy(image, content))
            marked = upright(Image.fromarray(is_defect.astype(np.uint8)), image)
        return Mask(_at_frame(marked, frame), marked.size)


def _require_ground(values: np.ndarray) -> None:
    """Refuse pixels of which nobody can tell whether they are ground."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("unreadable", "the mask has pixels that are not finite numbers")
    if values.dtype.kind in "if" and values.min() < 0:
        raise ImageError(
            "unsupported",
            f"the mask has values from {values.min()} on: 0 is its ground, write it without "
            "negative ones",
        )


def _is_lossy(image: Image.Image, content: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in content[:64]
    return image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"


def _values(image: Image.Image) -> np.ndarray:
    """Return what a file's loaded image has at each pixel; 0 is its ground."""
    if image.mode == "P":
        return _by_palette(image)
    if image.mode.startswith("I;16"):
        return _by_deep_grey(image)
    if image.mode in "IF" or (image.mode in "1L" and not image.has_transparency_data):
        return np.asarray(image)
    layered = as_rgba(image)
    colour = _brightest(layered.getchannel(band) for band in "RGB")
    return _over_ground(colour, np.asarray(layered.getchannel("A")))


def _by_palette(image: Image.Image) -> np.ndarray:
    colours = np.zeros((256, 4), np.uint8)
    found = np.asarray(image.getpalette("RGBA") or [], np.uint8).reshape(-1, 4)
    colours[: len(found)] = found
    transparent = image.info.get("transparency")
    if isinstance(transparent, bytes):
        colours[: len(transparent), 3] = np.frombuffer(transparent, np.uint8)
    elif isinstance(transparent, int):
        colours[transparent, 3] = 0
    used = np.flatnonzero(np.asarray(image.histogram()[:256]))
    of_index = np.zeros(256, np.uint8)
    of_index[used] = _over_ground(colours[used, :3].max(axis=1), colours[used, 3])
    is_unset = len(used) > 1 and not of_index[used].any()
    if is_unset or of_index[used].all():
        # A black that is no ground must not be 0.
        of_index[used] = np.maximum(of_index[used], 1)
        of_index[0] = 0
    return np.asarray(of_index[np.asarray(image)])


def _by_deep_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if is_white_zero(image):
        return np.asarray(np.iinfo(np.uint16).max - values)
    if "transparency" not in image.info:
        return values
    is_hidden = values == image.info["transparency"]
    return _over_ground(values, np.where(is_hidden, 0, np.iinfo(np.uint16).max).astype(np.uint16))


def _deep(image: Image.Image, content: bytes, limits: Limits) -> np.ndarray:
    """Return what an image of 16-bit colour has: of ids, the lower bytes count, too.

    Pillow has room for one byte of each sample: the file is decoded once for each.
    """
    again = open_image(content, limits)
    assert isinstance(again, ImageFile.ImageFile)
    mend_pixels(again)
    bands = to_lower_bytes(again)
    if bands is None:
        raise ImageError(
            "unsupported",
            f"a mask of 16-bit colour in this form ({image.mode}) is not read: "
            "write it as grey of 16 bits, or with 8 bits a channel",
        )
    again.load()
    # By the lower bytes' bands; of grey and alpha they are G and A, in an image of RGBA.
    upper = {band: image.getchannel(band) for band in bands}
    deep = (_joined(upper[band], again.getchannel(band)) for band in bands if band != "A")
    colour = _brightest(deep)
    if "A" not in bands:
        return colour
    return _over_ground(colour, _joined(upper["A"], again.getchannel("A")))


def _joined(upper: Image.Image, lower: Image.Image) -> np.ndarray:
    joined = np.asarray(upper).astype(np.uint16)
    joined <<= 8
    joined |= np.asarray(lower)
    return joined


def _brightest(channels: Iterable[Image.Image | np.ndarray]) -> np.ndarray:
    return reduce(np.maximum, map(np.asarray, channels))


def _over_ground(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return what is painted, of pixels or of entries of a palette: colours over black.

    Where all that is seen is black, it is what alpha shows of it. What nobody sees is no paint,
    whatever colour is below; but where all is hidden, alpha was never set, and colours count if
    there are two.
    """
    lowest, highest = int(alpha.min()), int(alpha.max())
    if highest == 0 and colour.min() == colour.max():
        return np.zeros_like(colour)
    if lowest == highest:
        return colour
    if not colour[alpha > 0].any():
        return alpha
    top = int(np.iinfo(colour.dtype).max)
    # 65535 * 65535 + 65534 < 2**32
    painted = colour.astype(np.uint32)
    painted *= alpha
    # Rounded up: faint is not background.
    painted += top - 1
    painted //= top
    return painted.astype(colour.dtype)


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
