"""Decoding processes: the same bytes as in this one, and an image that kills one costs itself."""

import io
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images import decoders, masks, pictures
from patchlake.pipeline.images.decode import decode_mask, decode_picture, is_image
from patchlake.pipeline.images.decoders import DecoderLost
from patchlake.pipeline.images.formats import KNOWN, Limits
from patchlake.pipeline.images.geometry import Geometry
from tests.fuzz.harness import target

LIMITS = Limits(max_pixels=10**8, formats=KNOWN)
GEOMETRIES = [Geometry((32, 24), None), Geometry(40, 32)]
RNG = np.random.default_rng(5)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


PHOTO = Image.fromarray(RNG.integers(0, 256, (50, 70, 3)).astype(np.uint8))
GOOD = _encode(PHOTO, "JPEG")


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _scans(side: int, count: int) -> bytes:
    """A progressive JPEG of grey whose scans say nothing, each of which libjpeg walks through."""
    blocks = (side // 8) ** 2
    runs = -(-blocks // 32767)
    head = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\x01" * 64)
    head += _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\0")
    head += _segment(0xC4, b"\0\x01" + bytes(15) + b"\0")
    head += _segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")
    head += _segment(0xDA, b"\x01\x01\0\0\0\0") + bytes((blocks + 7) // 8)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + (_segment(0xDA, b"\x01\x01\0\x01\x3f\0") + data) * count + b"\xff\xd9"


def _precincts(side: int) -> bytes:
    """A JPEG 2000 of 152 bytes, for whose precincts of 2 x 2 OpenJPEG builds gigabytes."""
    size = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 1) + b"\7\1\1"
    style = bytes([1, 0]) + struct.pack(">H", 1) + bytes([0, 5, 0, 0, 0, 1]) + b"\x11" * 6
    head = b"\xff\x4f" + _segment(0x51, size) + _segment(0x52, style)
    head += _segment(0x5C, b"\x40" * 17)
    return head + _segment(0x90, struct.pack(">HIBB", 0, 64, 0, 1)) + b"\xff\x93" + bytes(50)


def _png(width: int, height: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


WITHOUT_PALETTE = _png(4, 4, 3, bytes(20))


def _decode(content: bytes, limits: Limits = LIMITS) -> pictures.Picture:
    return decode_picture(content, limits, GEOMETRIES, photo=True)


def _error(content: bytes, limits: Limits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as raised:
        _decode(content, limits)
    return raised.value


# --- the same as in this process


def _outcome(call) -> object:
    try:
        found = call()
    except ImageError as error:
        return error.status, str(error)
    if isinstance(found, masks.Mask):
        return found.size, found.is_defect.tobytes()
    return found.width, found.height, found.pixels.tobytes(), found.photo


SAMPLES = [
    GOOD,
    _encode(PHOTO, "PNG"),
    _encode(PHOTO.quantize(5), "GIF"),
    _encode(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    _encode(PHOTO.convert("RGBA"), "WEBP"),
    _encode(PHOTO.convert("L"), "TIFF", compression="tiff_lzw"),
    _encode(Image.fromarray(RNG.integers(0, 65536, (9, 7)).astype(np.uint16)), "PNG"),
    _encode(PHOTO, "BMP"),
    _encode(PHOTO, "PPM"),
    b"P2\n2 2\n4095\n0 1 2 4095\n",
    WITHOUT_PALETTE,
    b"text",
    b"",
]


@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3))))
@settings(max_examples=100, deadline=None)
def test_a_decoding_process_gives_what_this_one_gives(content, patches):
    damaged = bytearray(content)
    for place, piece in patches:
        damaged[place : place + len(piece)] = piece
    content, small = bytes(damaged), replace(LIMITS, max_pixels=10_000)
    for photo in (True, False):
        here = _outcome(lambda p=photo: pictures.read_picture(content, small, GEOMETRIES, photo=p))
        there = _outcome(lambda p=photo: decode_picture(content, small, GEOMETRIES, photo=p))
        assert here == there
    here = _outcome(lambda: masks.decode_mask(content, (5, 6), small))
    assert here == _outcome(lambda: decode_mask(content, (5, 6), small))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_end_in_a_picture_or_an_image_error():
    for number in range(60):
        target("decode")(random.Random(f"tests/{number}"))


def test_a_picture_for_one_model_has_its_shape():
    found = decode_picture(GOOD, LIMITS, GEOMETRIES[:1], photo=False)
    assert found.pixels.shape == (32, 24, 3)
    assert found.photo is None
    assert (found.width, found.height) == (70, 50)


# --- what an image can do to it


def test_an_image_without_a_palette_is_unreadable():
    assert _error(WITHOUT_PALETTE).status == "unreadable"


def test_seconds_are_bounded_by_the_processor_and_the_next_image_is_decoded():
    began = time.monotonic()
    error = _error(_scans(4000, 3000), replace(LIMITS, max_seconds=0.3))
    assert error.status == "too_large"
    assert "image.max_seconds, 0.3 s" in str(error)
    assert time.monotonic() - began < 15
    assert _decode(GOOD).width == 70


def test_memory_is_bounded():
    # Its structures alone are some 2 GB.
    tight = replace(LIMITS, max_pixels=4_000_000, max_bytes=1000, max_seconds=60)
    error = _error(_precincts(2000), replace(tight, formats=("JPEG2000",)))
    assert error.status in ("too_large", "unreadable")
    assert _decode(GOOD).width == 70


def test_a_header_or_a_mask_is_bounded_too():
    with pytest.raises(ImageError, match="max_seconds"):
        decode_mask(_scans(4000, 3000), (8, 8), replace(LIMITS, max_seconds=0.3))
    comments = b"P1\n#" + b"x" * 20_000_000 + b"\n4 4\n"
    assert is_image(comments, replace(LIMITS, max_seconds=0.2))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGSEGV, "unreadable"),
                                                (signal.SIGABRT, "unreadable"),
                                                (signal.SIGPROF, "too_large")])  # fmt: skip
def test_the_death_of_a_new_process_is_the_image_s(number, status, monkeypatch):
    _end_idle()
    real = decoders._Decoder.ask

    def dies(self, kind, options, content):
        os.kill(self._process.pid, number)
        self._process.wait()
        return real(self, kind, options, content)

    monkeypatch.setattr(decoders._Decoder, "ask", dies)
    assert _error(GOOD).status == status


def test_an_image_is_tried_again_where_a_used_process_dies():
    _decode(GOOD)
    for child in _children():
        os.kill(child.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, lambda: [child.kill() for child in _children()])
    killer.start()
    assert _decode(GOOD).width == 70
    killer.join()


def test_a_process_that_was_killed_while_idle_is_replaced():
    _decode(GOOD)
    for child in _children():
        child.kill()
    assert _decode(GOOD).width == 70


def test_a_kill_from_outside_is_no_verdict_on_the_image(monkeypatch):
    _end_idle()
    real = decoders._Decoder.ask

    def killed(self, kind, options, content):
        self._process.kill()
        return real(self, kind, options, content)

    monkeypatch.setattr(decoders._Decoder, "ask", killed)
    with pytest.raises(DecoderLost, match=r"image\.max_pixels"):
        _decode(GOOD)


def test_threads_have_a_process_each_and_they_are_kept():
    _end_idle()
    barrier, pids = threading.Barrier(3), []

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            assert _decode(GOOD).width == 70

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pids = {child.pid for child in _children()}
    assert 1 <= len(pids) <= 3
    _decode(GOOD)
    assert {child.pid for child in _children()} == pids


# --- its end


def _children() -> list[psutil.Process]:
    mine = psutil.Process().children()
    return [child for child in mine if "patchlake.pipeline.images.worker" in child.cmdline()]


def _end_idle() -> None:
    while decoders._idle:
        decoders._idle.pop().close()


SCRIPT = """
import sys, threading, time
from pathlib import Path
from patchlake.pipeline.images import decoders
from patchlake.pipeline.images.decode import is_image, decode_mask
from patchlake.pipeline.images.decoders import DecodersStopped, stop_decoders
from patchlake.pipeline.images.formats import Limits
busy, limits = Path(sys.argv[1]).read_bytes(), Limits(max_seconds=5)
def work():
    try:
        decode_mask(busy, (8, 8), limits)
    except DecodersStopped:
        print("stopped", flush=True)
assert not is_image(b"text")
thread = threading.Thread(target=work, daemon=True)
thread.start()
time.sleep(1)
print(*(decoder._process.pid for decoder in decoders._alive), flush=True)
"""


@contextmanager
def _running(folder: Path, then: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process with a busy decoder, and its decoders' pids."""
    busy = folder / "busy.jpg"
    busy.write_bytes(_scans(4000, 40_000))
    command = [sys.executable, "-c", SCRIPT + then, str(busy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        yield it, [int(pid) for pid in it.stdout.readline().split()]


def _wait_for_the_end_of(pids: list[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["sys.exit()", "time.sleep(100)"])
def test_decoders_end_with_their_parent_however_it_ends(then, tmp_path):
    with _running(tmp_path, then) as (job, pids):
        assert pids
        if "sleep" in then:
            job.kill()
        job.wait(20)
    # An orphan goes on until its image has had its 5 s of processor time.
    _wait_for_the_end_of(pids, 40 if "sleep" in then else 5)


def test_stop_decoders_ends_all_and_lets_threads_go_on(tmp_path):
    then = "stop_decoders(); thread.join(5); print(thread.is_alive()); is_image(busy)"
    with _running(tmp_path, then) as (job, pids):
        told, errors = job.communicate(timeout=30)
        assert told.split() == ["stopped", "False"]
        assert "DecodersStopped" in errors.splitlines()[-1]
    _wait_for_the_end_of(pids, 5)
