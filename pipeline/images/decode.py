"""Untrusted bytes to what the stages need, decoded in a process of its own and within limits.

Each function gives what its slow sibling in this process gives (`pictures.read_picture`,
`pictures.read_photo`, `masks.decode_mask`, `formats.probe`), the same bytes and the same errors;
but an image that would kill, hang or exhaust the process is an `ImageError` like others. It costs a
copy of the file and of the result through pipes: 0.1 ms an image, beside some milliseconds of
decoding.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from patchlake.pipeline.config import ImageSettings
from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images import decoders
from patchlake.pipeline.images.decoders import stop_decoders
from patchlake.pipeline.images.formats import Limits, require_bytes
from patchlake.pipeline.images.geometry import Geometry, input_shape
from patchlake.pipeline.images.masks import Mask
from patchlake.pipeline.images.pictures import Picture
from patchlake.pipeline.images.worker import MASK, PHOTO, PICTURE, PROBE, Facts, Options

__all__ = [
    "decode_mask",
    "decode_photo",
    "decode_picture",
    "is_image",
    "limits_of",
    "stop_decoders",
]


def limits_of(settings: ImageSettings) -> Limits:
    """Return the part of the settings that a decoding process needs."""
    return Limits(**{field.name: getattr(settings, field.name) for field in fields(Limits)})


def decode_picture(
    content: bytes, limits: Limits, geometries: Sequence[Geometry], *, photo: bool
) -> Picture:
    """Return an image's inputs for the models, and its small photo if that is asked for.

    Raises:
        ImageError: with status `unreadable`, `too_large` or `unsupported`.
        RuntimeError: if decoding was stopped, or the system ends the decoding process.
    """
    require_bytes(content, limits)
    options = Options(limits, tuple(geometries), photo=photo)
    facts, found = decoders.ask(PICTURE, options, content)
    width, height = _size(facts)
    shape = input_shape(geometries)
    length = int(np.prod(shape))
    pixels = np.frombuffer(found, np.uint8, length).reshape(shape)
    small = bytes(memoryview(found)[length:]) if photo else None
    return Picture(width, height, pixels, small)


def decode_photo(content: bytes, limits: Limits, side: int) -> tuple[tuple[int, int], bytes]:
    """Return an image's (width, height), upright, and a JPEG of it, no side above `side`.

    Raises as `decode_picture`.
    """
    require_bytes(content, limits)
    facts, found = decoders.ask(PHOTO, Options(limits, side=side), content)
    return _size(facts), bytes(found)


def decode_mask(content: bytes, frame: tuple[int, int], limits: Limits) -> Mask:
    """Return a mask at a frame of (height, width). Raises as `decode_picture`."""
    require_bytes(content, limits)
    facts, found = decoders.ask(MASK, Options(limits, frame=frame), content)
    return Mask(np.frombuffer(found, np.bool_).reshape(frame), _size(facts))


def is_image(content: bytes, limits: Limits | None = None) -> bool:
    """Return whether the bytes begin as an image of a kind that can be read, if settings allow it.

    Args:
        content: Of a file, whole.
        limits: Of which memory and seconds count.
    """
    limits = limits or Limits()
    if len(content) > limits.max_bytes:
        # Its beginning says what it is; a TIFF may have its header at its end.
        return is_image(content[: limits.max_bytes], limits)
    try:
        decoders.ask(PROBE, Options(limits), content)
    except ImageError as error:
        return error.status != "unreadable"
    return True


def _size(facts: Facts) -> tuple[int, int]:
    size = facts["size"]
    assert isinstance(size, list)
    return int(size[0]), int(size[1])
