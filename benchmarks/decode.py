r"""What an image costs from its bytes to the model's input and the photo below its heatmap.

    python benchmarks/decode.py FOLDER... --side 1024 --kind PNG --peers SITE

Milliseconds of processor time an image, medians; all contenders take turns, file by file. SITE is
a folder with other decoders (`pip install --no-deps --target SITE simplejpeg imagecodecs
opencv-python-headless`), which are compared with Pillow's bare decoding.

    header      the file's header, and what is mended of it
    decode      Pillow's decoding
    input       resized to 224 x 224
    photo       the one below the heatmap: at most 512 pixels a side, as JPEG
    plain       the sum, where all is made RGB first
    ours        the sum as it is done
    processes   ours in a decoding process: both processes, with what goes between them, and SHA-256
    draft       ours with image.draft, in this process

With `--side` the pictures are enlarged to so many pixels first and get noise of 2 levels, as of a
sensor; `--kind` says what they are written as. Without it, files are taken as they are.
"""

import argparse
import ctypes
import hashlib
import importlib
import io
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from features import evenly, files_below
from PIL import Image

from patchlake.pipeline.images.decode import decode_picture
from patchlake.pipeline.images.formats import Limits, open_image
from patchlake.pipeline.images.geometry import Geometry, join_inputs
from patchlake.pipeline.images.light import to_light
from patchlake.pipeline.images.pictures import read_picture, small_photo

GEOMETRIES = (Geometry((224, 224), None),)
WHOLE, DRAFT = Limits(), Limits(draft=True)
NOISE = 2.0
# Of glibc's malloc.h, and as decoding processes have them: memory is kept between pictures.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _MAPPED = 128 * 2**20, 32 * 2**20
# Module and call of each peer, by kind of file; pixels are RGB, or grey of a grey file.
PEERS = {
    "JPEG": {
        "simplejpeg": ("simplejpeg", lambda it, content: it.decode_jpeg(content, "RGB")),
        "imagecodecs": ("imagecodecs", lambda it, content: it.jpeg8_decode(content)),
    },
    "PNG": {
        "imagecodecs": ("imagecodecs", lambda it, content: it.png_decode(content)),
        "libspng": ("imagecodecs", lambda it, content: it.spng_decode(content)),
    },
}
CV2 = ("cv2", lambda it, content: it.imdecode(np.frombuffer(content, np.uint8), it.IMREAD_COLOR))

Contenders = Mapping[str, Callable[[bytes], object]]


def main() -> None:
    """Parse, and print one line a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=12, help="images of a folder, evenly spread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int)
    parser.add_argument("--kind", choices=sorted(PEERS), default="JPEG")
    parser.add_argument("--peers", type=Path)
    arguments = parser.parse_args()
    glibc = ctypes.CDLL(None)
    glibc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    glibc.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    for folder in arguments.folders:
        files = evenly(files_below(folder), arguments.count)
        contents = [path.read_bytes() for path in files]
        if arguments.side:
            contents = [enlarged(one, arguments.side, arguments.kind) for one in contents]
        contenders = {**ours(), **(peers(contents[0]) if arguments.peers else {})}
        times = measured(contents, contenders, arguments.rounds)
        bytes_ = sum(map(len, contents)) // len(contents)
        sides = "x".join(map(str, open_image(contents[0], WHOLE).size))
        print(f"{folder}: {len(contents)} images, {bytes_ // 1024} KB, the first of {sides}")
        print("  " + ", ".join(f"{name} {value:.2f}" for name, value in times.items()))


def enlarged(content: bytes, side: int, kind: str) -> bytes:
    """Return a picture with `side` pixels on both sides, with noise; JPEG of quality 90 or PNG."""
    image = Image.open(io.BytesIO(content)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    noise = np.random.default_rng(0).normal(0, NOISE, pixels.shape)
    noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noisy).save(sink, kind, quality=90)
    return sink.getvalue()


def measured(contents: list[bytes], contenders: Contenders, rounds: int) -> dict[str, float]:
    """Return medians of milliseconds, of this process and its children."""
    for decode in contenders.values():
        decode(contents[0])
    # The decoding process, which is kept.
    children = [Path(f"/proc/{one.pid}/schedstat") for one in psutil.Process().children()]
    times = defaultdict(list)
    for number in range(rounds):
        for content in contents:
            step_by_step(content, times)
            for name in sorted(contenders, reverse=bool(number % 2)):
                began = _processor_ms(children)
                contenders[name](content)
                times[name].append(_processor_ms(children) - began)
    return {name: median(values) for name, values in times.items()}


def step_by_step(content: bytes, times: dict[str, list[float]]) -> None:
    """Add what each step of ours takes."""
    marks = [time.process_time()]
    opened = open_image(content, WHOLE)
    marks.append(time.process_time())
    image = to_light(opened, None)
    marks.append(time.process_time())
    join_inputs(image, GEOMETRIES)
    marks.append(time.process_time())
    small_photo(image)
    marks.append(time.process_time())
    for name, took in zip(("header", "decode", "input", "photo"), np.diff(marks), strict=True):
        times[name].append(1000 * took)


def ours() -> dict[str, Callable[[bytes], object]]:
    """Return the ways of this package, and the plain one."""

    def in_processes(content: bytes) -> None:
        decode_picture(content, WHOLE, GEOMETRIES, photo=True)
        hashlib.sha256(content).hexdigest()

    return {
        "plain": plain,
        "ours": lambda content: read_picture(content, WHOLE, GEOMETRIES, photo=True),
        "processes": in_processes,
        "draft": lambda content: read_picture(content, DRAFT, GEOMETRIES, photo=True),
    }


def plain(content: bytes) -> tuple[np.ndarray, bytes]:
    """Return the input and the photo, by way of RGB."""
    opened = open_image(content, WHOLE)
    opened.load()
    image = opened.convert("RGB")
    return GEOMETRIES[0].apply(image), small_photo(image)


def peers(content: bytes) -> dict[str, Callable[[bytes], object]]:
    """Return bare decoders of the kind of a file: Pillow, and those that are installed."""
    kind = str(Image.open(io.BytesIO(content)).format)
    found: dict[str, Callable[[bytes], object]] = {
        "bare Pillow": lambda content: Image.open(io.BytesIO(content)).load()
    }
    for name, (module, decode) in {**PEERS[kind], "OpenCV": CV2}.items():
        imported = importlib.import_module(module)
        found[name] = lambda content, it=imported, decode=decode: decode(it, content)
    return found


def _processor_ms(children: list[Path]) -> float:
    """Processor time so far of this process, and by these files of those that it has started."""
    # Nanoseconds on a processor come first.
    theirs = sum(int(path.read_text().split()[0]) / 1e6 for path in children)
    return 1000 * time.process_time() + theirs


if __name__ == "__main__":
    main()
