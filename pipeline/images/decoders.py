"""The decoding processes of this process: one for each thread that decodes, started once and kept.

A process is taken from those that idle, or started, and put back after its answer. One that dies
costs its image, and the next image starts another. So that no image is judged by what an earlier
one did to the heap, only the death of a process that had no image before counts: an image that
kills a used one is tried again in a new one.

They end with this process, however it ends: idle ones at the end of their stdin, busy ones when
their image has had its processor time. They are in a session of their own, so that Ctrl-C reaches
this process only.
"""

import atexit
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.worker import ANSWER, READY, REQUEST, Facts, Options, budget, text_of

# Of the clock, for a process that gets no processor: none sleeps by itself. It is no verdict on the
# image, but a failure of the machine, and the fragment is tried again.
_PATIENCE = 20
_PATIENCE_S = 60.0
# Of a start, which imports numpy and Pillow: 0.2 s, and much longer from a cold network disk.
_START_S = 120.0
_PIPE_BYTES = 2**20


class DecodersStopped(RuntimeError):  # noqa: N818 - as `Stopped`
    """The job was asked to stop: nothing is decoded any more in this process."""


class DecoderLost(RuntimeError):  # noqa: N818 - what happened, as `WorkersLost`
    """A decoding process was killed from outside, or got no processor: not the image's fault."""


def ask(kind: int, options: Options, content: bytes) -> tuple[Facts, bytearray]:
    """Return the answer of a decoding process: facts, and bytes of pixels.

    Raises:
        ImageError: with the status and message for the row: also where the image takes the process
            too long or too much memory (`too_large`), or ends it (`unreadable`).
        DecoderLost: if the system or somebody ended the process, twice.
        DecodersStopped: after `stop_decoders`.
    """
    decoder = _taken()
    if decoder.is_used:
        try:
            return _answer(decoder, kind, options, content)
        except _Died as death:
            if death.signal == signal.SIGPROF:
                raise _verdict(death, options) from None
        decoder = _Decoder()
    try:
        return _answer(decoder, kind, options, content)
    except _Died as death:
        raise _verdict(death, options) from None


def stop_decoders() -> None:
    """End all decoding processes of this process at once, and let no other begin.

    Threads that wait for one raise `DecodersStopped`. It takes no lock and does not wait: a signal
    handler may call it.
    """
    global _is_stopped  # noqa: PLW0603 - one process, one answer
    _is_stopped = True
    for decoder in list(_alive):
        decoder.kill()


# Sets and deques need no lock for one operation, and a lock could be held by the thread that a
# signal handler interrupts.
_alive: set["_Decoder"] = set()
_idle: deque["_Decoder"] = deque()
_is_stopped = False


def _taken() -> "_Decoder":
    while True:
        try:
            decoder = _idle.pop()
        except IndexError:
            return _Decoder()
        if decoder.is_running():
            return decoder
        decoder.close()


def _answer(
    decoder: "_Decoder", kind: int, options: Options, content: bytes
) -> tuple[Facts, bytearray]:
    try:
        answer = decoder.ask(kind, options, content)
    except BaseException:
        # Also where a signal handler raised: it is in the middle of something.
        decoder.close()
        raise
    _idle.append(decoder)
    facts, _ = answer
    if "status" in facts:
        raise ImageError(facts["status"], str(facts["error"]))  # type: ignore[arg-type]
    return answer


class _Died(Exception):  # noqa: N818 - what happened
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.signal = -code if code < 0 else None


def _verdict(death: _Died, options: Options) -> Exception:
    limits = options.limits
    if _is_stopped:
        return DecodersStopped("decoding was stopped")
    if death.signal == signal.SIGPROF:
        return ImageError(
            "too_large",
            f"its decoding takes longer than image.max_seconds, {limits.max_seconds:g} s of "
            "processor time",
        )
    if death.signal in (signal.SIGKILL, signal.SIGTERM):
        return DecoderLost(
            f"a decoding process was killed by {signal.Signals(death.signal).name}, as systems do "
            f"where memory is short: it may take {budget(limits) >> 20} MiB, which follows from "
            "image.max_pixels and image.max_bytes; lower them, decode in fewer threads, or give "
            "the job more"
        )
    name = signal.Signals(death.signal).name if death.signal else "its own exit"
    return ImageError("unreadable", f"the image is broken: its decoder ended with {name}")


class _Decoder:
    """One process and its pipes. Used by one thread at a time; any may kill it."""

    def __init__(self) -> None:
        if _is_stopped:
            raise DecodersStopped("decoding was stopped")
        self.is_used = False
        self._process = _start()
        _alive.add(self)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        for pipe in (self._requests, self._answers):
            # A request or an answer at once, not 64 KiB by 64 KiB and a switch each.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._deadline = time.monotonic() + _START_S
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        if _is_stopped:  # since it was looked at above, and before this one could be killed
            raise DecodersStopped("decoding was stopped")
        try:
            self._read(len(READY))
        except _Died:
            if _is_stopped:
                raise DecodersStopped("decoding was stopped") from None
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"a decoding process did not start: {said[-1] if said else 'it said nothing'}"
            ) from None

    def ask(self, kind: int, options: Options, content: bytes) -> tuple[Facts, bytearray]:
        """Return the answer to one request. Raises `_Died` or `DecoderLost`."""
        self.is_used = True
        self._deadline = time.monotonic() + _PATIENCE * options.limits.max_seconds + _PATIENCE_S
        text = text_of(options)
        self._write(REQUEST.pack(kind, len(text), len(content)) + text)
        self._write(content)
        facts_length, pixels_length = ANSWER.unpack(self._read(ANSWER.size))
        facts = json.loads(self._read(facts_length))
        return facts, self._read(pixels_length)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; its pipes stay until `close`."""
        self._process.kill()

    def close(self) -> None:
        """End the process and let go of it."""
        _alive.discard(self)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            self._wait(self._requests, select.POLLOUT)
            try:
                left = left[os.write(self._requests, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _Died(self._process.wait()) from None

    def _read(self, length: int) -> bytearray:
        content = bytearray(length)
        left = memoryview(content)
        while left:
            self._wait(self._answers, select.POLLIN)
            count = os.readv(self._answers, [left])
            if not count:
                raise _Died(self._process.wait())
            left = left[count:]
        return content

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise DecoderLost("a decoding process got no processor; the machine is overloaded")


def _start() -> subprocess.Popen[bytes]:
    # The same modules as here, whatever the working folder; and none of this process's secrets.
    kept = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    # Each thread of OpenBLAS maps memory, and none is of use.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    # What one picture takes is kept for the next, up to 128 MiB: given back and asked for each
    # time, its pages take a third of the time of decoding (glibc, as it does in a process that
    # grew). 16 megapixels are 64 MB of RGB, and what is made of them is beside it.
    environment["MALLOC_MMAP_THRESHOLD_"] = str(32 * 2**20)
    environment["MALLOC_TRIM_THRESHOLD_"] = str(128 * 2**20)
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "patchlake.pipeline.images.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        env=environment,
        start_new_session=True,
    )


@atexit.register
def _close() -> None:
    for decoder in list(_alive):
        decoder.close()


def _forget() -> None:
    """In a process that was forked off: the decoders are its parent's."""
    _alive.clear()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)
