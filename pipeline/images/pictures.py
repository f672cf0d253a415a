"""One file to what the stages need of it: the models' inputs, and the photo below a heatmap."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from patchlake.pipeline.images.files import decode_light
from patchlake.pipeline.images.formats import Limits, as_image_errors
from patchlake.pipeline.images.geometry import Extent, Geometry, join_inputs
from patchlake.pipeline.maths.interior import Interior

# Of the longest side of the photo in a heatmap, in pixels.
MAX_SIDE = 512
# Of a small photo as JPEG. It is encoded once more, with the colours of the heatmap over it.
_QUALITY = 90
# Pillow's `reducing_gap`: sides are first divided by the whole number that leaves at least the
# photo's, which takes a third to a sixth of the time of resizing at once. On photos the result
# differs by up to 4 levels, which is good enough for the eye; a model's input is made without.
_GAP = 1.0


@dataclass(frozen=True)
class Picture:
    """One image: the upright size of the file in pixels, and what was made of it."""

    width: int
    height: int
    # As `join_inputs` returns it.
    pixels: UInt8[np.ndarray, "..."]
    # What `small_photo` returns, where it was asked for.
    photo: bytes | None
    # Which pixels of the first input count, where a region of interest says it.
    interior: Interior | None = None


def read_picture(
    content: bytes, limits: Limits, geometries: Sequence[Geometry], *, photo: bool
) -> Picture:
    """Return one image. In this process: stages call `pipeline.images.decode`.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    image, extent = decode_light(content, limits, geometries)
    with as_image_errors():
        return picture_of(image, geometries, photo=photo, extent=extent)


def read_photo(content: bytes, limits: Limits, side: int) -> tuple[tuple[int, int], bytes]:
    """Return an image's (width, height), upright, and its small photo as JPEG. In this process.

    A large JPEG is decoded at a reduced scale, whatever `draft` says: nothing is scored by it.

    Raises:
        ImageError: as `read_picture`.
    """
    limits = replace(limits, draft=True)
    image, extent = decode_light(content, limits, (Geometry((side, side), None),))
    with as_image_errors():
        return (extent or Extent.whole(image)).size, small_photo(image, extent, side)


def picture_of(
    image: Image.Image, geometries: Sequence[Geometry], *, photo: bool, extent: Extent | None = None
) -> Picture:
    """Return what the stages need of an upright image. Arguments and errors: `Geometry.apply`."""
    pixels = join_inputs(image, geometries, extent)
    small = small_photo(image, extent) if photo else None
    width, height = extent.size if extent else image.size
    return Picture(width, height, pixels, small)


def picture_size(width: int, height: int, side: int = MAX_SIDE) -> tuple[int, int]:
    """Return (height, width) of the photo of an image: its shape, and no side above `side`."""
    shrink = min(1.0, side / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def resized_photo(
    image: Image.Image, extent: Extent | None = None, side: int = MAX_SIDE
) -> Image.Image:
    """Return an upright image at `picture_size`, in its own colours.

    Args:
        image: RGB, or L, which stays L.
        extent: Of a picture at a reduced scale; None: it has the file's own pixels.
        side: Of the longest side, in pixels; a smaller image stays as it is.
    """
    extent = extent or Extent.whole(image)
    height, width = picture_size(*extent.size, side)
    return image.resize((width, height), Image.Resampling.BILINEAR, extent.box, _GAP)


def small_photo(image: Image.Image, extent: Extent | None = None, side: int = MAX_SIDE) -> bytes:
    """Return what a heatmap is drawn on: `resized_photo` as JPEG, of grey where the image is."""
    sink = io.BytesIO()
    resized_photo(image, extent, side).save(sink, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return sink.getvalue()


def photo_pixels(photo: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a JPEG that `small_photo` wrote: red, green and blue; read-only."""
    with Image.open(io.BytesIO(photo), formats=("JPEG",)) as image:
        # `convert` copies what is RGB already.
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
