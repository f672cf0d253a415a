"""Encoded, untrusted bytes to upright RGB pixels, in this process: nothing bounds what it costs.

Stages call `pipeline.images.decode`, which has it done by a decoding process. What each kind of
file means is said in `pipeline.images.light`.
"""

from PIL import Image

from patchlake.pipeline.images.formats import Limits, as_image_errors, open_image
from patchlake.pipeline.images.light import to_rgb
from patchlake.pipeline.images.netpbm import read_netpbm, rgb_of


def decode_image(content: bytes, limits: Limits) -> Image.Image:
    """Return an upright RGB image.

    The size is read from the header and held against `max_pixels` before a pixel is decoded.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
    """
    with as_image_errors():
        netpbm = read_netpbm(content, limits)
        if netpbm is not None:
            return rgb_of(netpbm, limits.bits)
        return to_rgb(open_image(content, limits), limits.bits)
