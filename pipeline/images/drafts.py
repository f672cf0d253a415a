"""JPEG at a half, a quarter or an eighth of its sides, where the models' inputs are much smaller.

libjpeg makes such a picture of the lower frequencies of each block, and never has the pixels that
are left out. That is `image.draft`, which a model fixes, since scores change with it. The scale
leaves at least twice the sides to which the picture is then resized, so that what is resized has
the detail that the result can show. Sizes in pixels stay those of the file.
"""

from collections.abc import Sequence

from PIL import Image, JpegImagePlugin

from patchlake.pipeline.images.geometry import Extent, Geometry
from patchlake.pipeline.images.light import orientation_of, to_light

# Of libjpeg, of which Pillow offers these.
_SCALES = (8, 4, 2)
# Sides that are left, in sides of the resized picture.
_LEAST = 2

# By EXIF orientation: those that exchange the sides, and those that turn the right end of a row to
# the left of the upright picture, or the lower end of a column to its top.
_EXCHANGED, _FROM_RIGHT, _FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def draft_scale(width: int, height: int, geometries: Sequence[Geometry]) -> int:
    """Return by what both sides of an upright picture may be divided: 8, 4, 2, or 1.

    Args:
        width: Of the file, in pixels.
        height: As `width`.
        geometries: Of all inputs that will be made; at least one.
    """
    resized = [geometry.resized(width, height) for geometry in geometries]
    least_height, least_width = (_LEAST * max(sides) for sides in zip(*resized, strict=True))
    return next((s for s in _SCALES if least_width * s <= width and least_height * s <= height), 1)


def read_draft(
    image: Image.Image, geometries: Sequence[Geometry]
) -> tuple[Image.Image, Extent] | None:
    """Return a file's opened image, upright, of mode RGB or L, at a reduced scale, and its extent.

    Returns:
        None where the file has to be opened again and decoded as it is: no JPEG, one that is too
        small, or one that cannot be decoded at that scale. Lossless JPEG has none; and what is
        broken gets the error that it has without a scale.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    orientation = orientation_of(image)
    width, height = image.size
    size = (height, width) if orientation in _EXCHANGED else (width, height)
    scale = draft_scale(*size, geometries)
    if scale == 1 or image.draft(None, (width // scale, height // scale)) is None:
        return None
    # What the last column and row of blocks has beyond the file, in pixels of the draft.
    beyond = image.width - width / scale, image.height - height / scale
    try:
        light = to_light(image, None)
    except OSError:
        return None
    return light, Extent(size, _box(light.size, beyond, orientation))


def _box(
    size: tuple[int, int], beyond: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """Return where the file lies in an upright draft of `size`, of which `beyond` is not its."""
    across, down = beyond[::-1] if orientation in _EXCHANGED else beyond
    left = across if orientation in _FROM_RIGHT else 0.0
    top = down if orientation in _FROM_BELOW else 0.0
    return left, top, left + size[0] - across, top + size[1] - down
