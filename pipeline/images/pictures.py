"""One file to what the stages need of it: the models' inputs, and the picture for a heatmap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from patchlake.pipeline.images.files import decode_light
from patchlake.pipeline.images.formats import Limits, as_image_errors
from patchlake.pipeline.images.geometry import Extent, Geometry, join_inputs
from patchlake.pipeline.maths.interior import Interior

# Of a heatmap's longest side, in pixels.
MAX_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """One image: the upright size of the file in pixels, and what was made of it."""

    width: int
    height: int
    # As `join_inputs` returns it.
    pixels: UInt8[np.ndarray, "..."]
    # The bytes of `grey_picture`, where they were asked for.
    grey: bytes | None
    # Which pixels of the first input count, where a region of interest says it.
    interior: Interior | None = None


def read_picture(
    content: bytes, limits: Limits, geometries: Sequence[Geometry], *, grey: bool
) -> Picture:
    """Return one image. In this process: stages call `pipeline.images.decode`.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    image, extent = decode_light(content, limits, geometries)
    with as_image_errors():
        return picture_of(image, geometries, grey=grey, extent=extent)


def picture_of(
    image: Image.Image, geometries: Sequence[Geometry], *, grey: bool, extent: Extent | None = None
) -> Picture:
    """Return what the stages need of an upright image. Arguments and errors: `Geometry.apply`."""
    pixels = join_inputs(image, geometries, extent)
    picture = grey_picture(image, extent).tobytes() if grey else None
    width, height = extent.size if extent else image.size
    return Picture(width, height, pixels, picture)


def picture_size(width: int, height: int) -> tuple[int, int]:
    """Return (height, width) of the heatmap of an image: its shape, no side above `MAX_SIDE`."""
    shrink = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def grey_picture(image: Image.Image, extent: Extent | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return what a heatmap is drawn on: an upright image at `picture_size`, in grey.

    Colours become grey before they are resized, which halves the time. The other order differs by
    one level, and in fewer than one of 30,000 pixels of noise by two.
    """
    extent = extent or Extent.whole(image)
    height, width = picture_size(*extent.size)
    grey = image if image.mode == "L" else image.convert("L")
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR, extent.box))
