"""Encoded, untrusted bytes to upright pixels, in this process: nothing bounds what it costs.

Stages call `pipeline.images.decode`, which has it done by a decoding process. What each kind of
file means is said in `pipeline.images.light`.
"""

from collections.abc import Sequence

from PIL import Image

from patchlake.pipeline.images.drafts import read_draft
from patchlake.pipeline.images.formats import Limits, as_image_errors, open_image
from patchlake.pipeline.images.geometry import Extent, Geometry
from patchlake.pipeline.images.light import to_light
from patchlake.pipeline.images.netpbm import light_of, read_netpbm


def decode_image(content: bytes, limits: Limits) -> Image.Image:
    """Return an upright RGB image of the file's own pixels, whatever `draft` says.

    The size is read from the header and held against `max_pixels` before a pixel is decoded.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    image, _ = decode_light(content, limits, ())
    return image.convert("RGB")


def decode_light(
    content: bytes, limits: Limits, geometries: Sequence[Geometry]
) -> tuple[Image.Image, Extent | None]:
    """Return an upright image of mode RGB, or L where the file is grey, and its extent.

    Args:
        content: Of the file, whole.
        limits: With `draft`, a JPEG is decoded at a scale that the geometries leave.
        geometries: Of the inputs that will be made of it. None of them: no scale.

    Returns:
        The image, and how the file lies in it; None where the image has the file's own pixels.

    Raises:
        ImageError: as `decode_image`.
    """
    with as_image_errors():
        netpbm = read_netpbm(content, limits)
        if netpbm is not None:
            return light_of(netpbm, limits.bits), None
        if limits.draft and geometries:
            found = read_draft(open_image(content, limits), geometries)
            if found is not None:
                return found
        return to_light(open_image(content, limits), limits.bits), None
