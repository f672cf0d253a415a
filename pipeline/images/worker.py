"""A decoding process: what untrusted bytes can kill, hang or exhaust is this, and not the job.

Its parent (`pipeline.images.decoders`) starts it, and writes one request at a time to its stdin:

    u8 kind, u32 length of the options, u64 length of the file; the options as JSON; the file

It answers on its stdout, and ends where its stdin ends:

    u32 length of the facts, u64 length of the pixels; the facts as JSON; the pixels

Processor time: `ITIMER_PROF` counts that of this process, in the kernel, so that a decoder that
holds the interpreter for hours is ended by SIGPROF without anybody who watches; and an orphan, too.
Memory: `RLIMIT_AS`, above what the process has after its imports, of

    16 bytes a pixel of max_pixels   4 of the picture as RGB and 4 of what it is made of, and 8 of
                                     a decoder: the coefficients of a progressive CMYK JPEG
    32 where JPEG 2000 is allowed    OpenJPEG has int32 of each of 4 channels twice
    4 times max_bytes                the file, and copies of pieces of it
    1 GiB                            the picture resized to 100 megapixels, and all that is small:
                                     the photo, too

that is 2.7 GiB by default, and what an image of 100 megapixels may need. It is not reserved.
"""

import json
import os
import resource
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.formats import Limits, probe
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.masks import decode_mask
from patchlake.pipeline.images.pictures import read_photo, read_picture

REQUEST = struct.Struct("<BIQ")
ANSWER = struct.Struct("<IQ")
PICTURE, MASK, PROBE, PHOTO = range(4)
READY = b"+"
# Besides what pixels take.
_SPARE_BYTES = 2**30

Facts = dict[str, object]


def main() -> None:
    """Answer requests until there are no more."""
    base = _limit_itself()
    requests, answers = _own_pipes()
    answers.write(READY)
    answers.flush()
    with suppress(BrokenPipeError):  # the parent is gone
        while _serve(requests, answers, base):
            pass
    # Without the interpreter's clean-up, which a broken heap may not survive.
    os._exit(0)


def budget(limits: Limits) -> int:
    """Return the bytes that a file within the limits may take to decode."""
    a_pixel = 32 if "JPEG2000" in limits.formats else 16
    return a_pixel * limits.max_pixels + 4 * limits.max_bytes + _SPARE_BYTES


def _limit_itself() -> int:
    """Set all that does not depend on the settings; return the address space in use, in bytes."""
    # Dispositions and masks are inherited, whatever the parent does with them.
    for number in (signal.SIGPROF, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    with suppress(OSError):
        # Where the machine has no memory left, this process is the one to go.
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0  # no Linux: RLIMIT_AS means nothing there


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes, out of the reach of libraries that print; they print into nothing."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    return requests, answers


def _serve(requests: BinaryIO, answers: BinaryIO, base: int) -> bool:
    """Answer one request; return whether there was one."""
    head = requests.read(REQUEST.size)
    if len(head) < REQUEST.size:
        return False
    kind, options_length, length = REQUEST.unpack(head)
    options = parse_options(requests.read(options_length))
    if base:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (base + budget(options.limits), hard))
    content = requests.read(length)
    signal.setitimer(signal.ITIMER_PROF, options.limits.max_seconds)
    try:
        facts, pixels = _WORK[kind](content, options)
    except ImageError as error:
        facts, pixels = {"status": error.status, "error": str(error)}, ()
    signal.setitimer(signal.ITIMER_PROF, 0)
    text = json.dumps(facts).encode()
    answers.write(ANSWER.pack(len(text), sum(len(piece) for piece in pixels)) + text)
    for piece in pixels:
        answers.write(piece)
    answers.flush()
    return True


@dataclass(frozen=True)
class Options:
    """What is asked of a file.

    `geometries` and `photo` are of a picture, `frame` of a mask, `side` of a photo alone.
    """

    limits: Limits
    geometries: tuple[Geometry, ...] = ()
    photo: bool = False
    frame: tuple[int, int] = (0, 0)
    side: int = 0


@lru_cache(maxsize=4)
def text_of(options: Options) -> bytes:
    """Return the options as they travel."""
    return json.dumps(asdict(options)).encode()


@lru_cache(maxsize=4)
def parse_options(text: bytes) -> Options:
    """Return the options that `text_of` wrote."""
    fields = json.loads(text)
    limits = fields["limits"]
    limits["formats"] = tuple(limits["formats"])
    geometries = [
        Geometry(
            tuple(g["resize"]) if isinstance(g["resize"], list) else g["resize"],
            g["crop"],
            degrees=g["degrees"],
        )
        for g in fields["geometries"]
    ]
    return Options(
        Limits(**limits),
        tuple(geometries),
        fields["photo"],
        tuple(fields["frame"]),
        fields["side"],
    )


def _picture(content: bytes, options: Options) -> tuple[Facts, Sequence[bytes | memoryview]]:
    picture = read_picture(content, options.limits, options.geometries, photo=options.photo)
    pixels = np.ascontiguousarray(picture.pixels).data.cast("B")
    return {"size": [picture.width, picture.height]}, (pixels, picture.photo or b"")


def _mask(content: bytes, options: Options) -> tuple[Facts, Sequence[bytes | memoryview]]:
    mask = decode_mask(content, options.frame, options.limits)
    return {"size": mask.size}, (mask.is_defect.tobytes(),)


def _probe(content: bytes, _: Options) -> tuple[Facts, Sequence[bytes | memoryview]]:
    probe(content)
    return {}, ()


def _photo(content: bytes, options: Options) -> tuple[Facts, Sequence[bytes | memoryview]]:
    size, photo = read_photo(content, options.limits, options.side)
    return {"size": size}, (photo,)


_WORK = {PICTURE: _picture, MASK: _mask, PROBE: _probe, PHOTO: _photo}

if __name__ == "__main__":
    main()
