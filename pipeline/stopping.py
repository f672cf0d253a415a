"""A stop that stops: SIGINT and SIGTERM, from the command's first line to its last.

Both are blocked in every thread, and one thread waits for them. So none can be lost: no handler
that a library brings along ever gets one (Ray's, in Python and, through Abseil, in C++), and none
waits for a main thread that is in the middle of C code. What that thread does depends on where the
job is:

- it starts (imports) or ends: there is nothing to clear away, and the process ends at once;
- it works: `Stopped` is raised in the main thread, whose clean-up ends the job. Where that is
  swallowed, or does not come to its end in `GRACE_S` seconds (the main thread is in C code, or
  waits for a thread that is), the process ends all the same.

A second signal ends the process at once. The exit code is 4 whatever the exception became on its
way up. Processes that were started here never outlive it, nor do half-written files.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import ClassVar, Literal, NoReturn

from patchlake.pipeline.errors import Stopped

# A job that is asked to stop has ended after 10 s; this leaves two for ending what it has started.
GRACE_S = 8.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Raises `Stopped` in the main thread. Nobody but the thread that waits sends it.
_WAKE = signal.SIGUSR1
# Of a dropped exception: after what dropped it, often a finaliser, has returned.
_AGAIN_S = 0.05
# A reader who has stopped reading does not keep the process: longer, a line is not waited for.
_SAID_S = 0.5
# For each thing that is called at the end, two of which there are; and for children to be gone.
_CALL_S = 0.4
_GONE_S = 0.5

Phase = Literal["starting", "working", "ending"]


class _State:
    phase: Phase = "starting"
    # Why the job is to stop; None while it is not.
    reason: str | None = None
    # Called where the main thread has no time left to clear away.
    abrupt: tuple[Callable[[], None], ...] = ()
    saying = threading.Lock()
    # Where the line goes that says so: standard error, or what was that.
    descriptor = 2
    # Processes below this one when the signal came, and when each began.
    children: ClassVar[dict[int, int]] = {}


def run(call: Callable[[], int]) -> NoReturn:
    """Take both signals, do the work, and end the process with the code that it returns.

    To be called in the main thread, before there is any other.
    """
    _begin()
    try:
        try:
            code = call()
        finally:
            _State.phase = "ending"
    except BaseException:  # noqa: BLE001 - the last place that can tell
        # Whatever a stop has become on its way up, it is told as what it is.
        if _State.reason is None:
            sys.excepthook(*sys.exc_info())
        code = 1
    _leave(code)


def working() -> None:
    """Say that from now on a stop has something to clear away, which ends the job."""
    _State.phase = "working"


@contextlib.contextmanager
def abruptly(call: Callable[[], None]) -> Iterator[None]:
    """Have something called, in another thread, where the process ends before the block does."""
    _State.abrupt = (call, *_State.abrupt)
    yield
    # Not where the block ends by a stop: a thread of the job may be at work still.
    _State.abrupt = tuple(one for one in _State.abrupt if one is not call)


def reason() -> str | None:
    """Return why the job is to stop; None if nobody has asked for it."""
    return _State.reason


def say_to(descriptor: int) -> None:
    """Write the line of a stop to another open file from now on."""
    _State.descriptor = descriptor


def _begin() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # Of a process that is started with a signal ignored (`nohup`), the signal is taken as well.
    for number in (*_SIGNALS, _WAKE):
        signal.signal(number, _raise)
    # Children do not inherit it, or nothing but SIGKILL would end them.
    os.register_at_fork(after_in_child=_unblock)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_watch, name="signals", daemon=True).start()


def _leave(code: int) -> NoReturn:
    """End the process with a code; of a job that was asked to stop it is 4.

    Python's own way out waits for threads of which one may be in C code for hours, and takes no
    signals any more.
    """
    if _State.reason is not None:
        _say(_State.reason)
    # What libraries have registered; there is no public name for it.
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        # A reader that is gone (`| head`) has what it wanted.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _State.reason is not None:
        _end_now()
    os._exit(code)


def _watch() -> None:
    number = signal.sigwait(_SIGNALS)
    _State.reason = f"stopped by {signal.Signals(number).name}; the same command goes on from here"
    _State.children = _descendants()
    # One line is said of a stop. What breaks while all is taken down is no news.
    logging.disable()
    threading.excepthook = _ignore
    if _State.phase == "working":
        threading.Thread(target=_end_late, name="last resort", daemon=True).start()
        _wake()
        signal.sigwait(_SIGNALS)
    _end_now()


def _wake() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, _WAKE)


def _raise(_number: int, _frame: FrameType | None) -> None:
    if _State.phase == "working" and _State.reason is not None:
        raise Stopped(_State.reason)


def _unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    """Ask again where Python drops what was raised: in finalisers and callbacks."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt) or _State.reason is None:
        sys.__unraisablehook__(dropped)
        return
    again = threading.Timer(_AGAIN_S, _wake)
    again.daemon = True
    again.start()


def _ignore(_: threading.ExceptHookArgs) -> None:
    return


def _unblock() -> None:
    for number in (*_SIGNALS, _WAKE):
        signal.signal(number, signal.SIG_DFL)
    # Last: one may be waiting already.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_late() -> None:
    time.sleep(GRACE_S)
    _end_now()


def _end_now() -> NoReturn:
    try:
        _say(str(_State.reason))
        _end_children()
        for call in _State.abrupt:
            _within(_CALL_S, call)
    finally:
        os._exit(Stopped.exit_code)


def _say(text: str) -> None:
    """Write the line, once in this process."""
    if not _State.saying.acquire(blocking=False):
        return
    line = f"{time.strftime('%H:%M:%S')} {text}\n"
    # A progress bar that has no time to be taken down has hidden the cursor.
    descriptor = _State.descriptor
    shown = "\x1b[?25h" if os.isatty(descriptor) else ""
    _within(_SAID_S, lambda: os.write(descriptor, f"{shown}{line}".encode()))


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Call it, and wait no longer than that for its end."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    calling = threading.Thread(target=quietly, daemon=True)
    calling.start()
    calling.join(seconds)


def _end_children() -> None:
    """End the processes that this one has started, and those that they have; wait for their end."""
    deadline = time.monotonic() + _GONE_S
    # Those of the signal's moment, too: whose parent has ended since is no descendant any more.
    left = _State.children | _descendants()
    # Halted before any is ended: what one starts between a look and its end would be nobody's
    # child, as a raylet's agent was that then lived for a minute.
    halted: dict[int, int] = {}
    while left.keys() - halted and time.monotonic() < deadline:
        _send(signal.SIGSTOP, left.keys() - halted)
        halted = left
        left = left | _descendants()
    while left and time.monotonic() < deadline:
        _send(signal.SIGKILL, left)
        time.sleep(0.02)
        left = {pid: born for pid, born in (left | _descendants()).items() if _is_alive(pid, born)}
    # Whatever the time: none of them is left halted.
    _send(signal.SIGKILL, left)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _descendants() -> dict[int, int]:
    """Return the living processes below this one, and when each began; none without a /proc."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return {}
    living = {pid: found for pid in pids if (found := _look_up(pid)) is not None}
    below = [os.getpid()]
    for above in below:
        below += [pid for pid, (parent, _) in living.items() if parent == above]
    return {pid: living[pid][1] for pid in below[1:]}


def _is_alive(pid: int, born: int) -> bool:
    # A number that was given again is another process.
    found = _look_up(pid)
    return found is not None and found[1] == born


def _look_up(pid: int) -> tuple[int, int] | None:
    """Return a process's parent and when it began, in ticks; None if it has ended.

    One that only waits to be asked how it ended has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # pid (name) state parent ...; a name may have spaces and brackets. The 22nd is its start.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))
