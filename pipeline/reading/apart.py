"""Other people's files are read in a process of its own, whose death costs a file and not the job.

Over some files Arrow's C++ ends its process: an exception that nobody catches, a pointer that a
footer has bent. So a function that opens such files is called here: it runs in a child, which is
kept for the next call, and what it makes of a file comes back as its result, or as `FileDamaged`
with the file's name.

The child is not one of `multiprocessing`'s, which imports the program's main module again, and
with it torch: this one has what the function needs, and starts in half a second.
"""

import atexit
import contextlib
import os
import pickle  # noqa: TID251 - between this process and its own child
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO, Generic, TypeVar, cast

import pyarrow as pa

from patchlake.pipeline.errors import FileDamaged, InputChanged, PatchlakeError, StorageError
from patchlake.pipeline.storage.folder import Folder

T = TypeVar("T")
R = TypeVar("R")

# Footers are a few KB behind a latency of tens of ms on an object store.
_AT_ONCE = 16
# Items of one request: what they return waits in the child.
_ASKED = 256
# Children that wait for the next call, as many as threads have called for at the same time, up to
# this. Each has some 100 MB of libraries.
_KEPT = 4
_SHOWN = 300


@dataclass(frozen=True)
class Call(Generic[T, R]):
    """A function of one item, which is about one file.

    Both must be what pickle can send: the function one of a module, or a method of a value.
    """

    function: Callable[[T], R]
    item: T
    # The file, for messages.
    where: str

    def __call__(self) -> R:
        """Return what the function returns.

        Raises:
            FileDamaged: for whatever Arrow makes of a damaged file, which it does not name.
        """
        try:
            return self.function(self.item)
        except (PatchlakeError, InputChanged, StorageError):
            raise
        except OSError as error:
            # Of Arrow's complaints some are OSErrors, without an errno.
            if error.errno is not None:
                raise
            raise self.damaged(error) from None
        except (pa.ArrowException, ValueError, LookupError, OverflowError, MemoryError) as error:
            raise self.damaged(error) from None

    def damaged(self, reason: object) -> FileDamaged:
        """Return the error that names the file."""
        message = " ".join(str(reason).split()) or type(reason).__name__
        return FileDamaged(f"{self.where} cannot be read: {message[:_SHOWN]}")


def prepare() -> None:
    """Begin to start a child, if none waits: the first call need not wait for its imports."""
    with _LOCK:
        if not _IDLE and not _State.expendable:
            _IDLE.append(_Child())


def expendable() -> None:
    """Say that this process is one of many, and watched: it calls everything itself."""
    _State.expendable = True


def apart(images: Folder, call: Call[T, R]) -> R:
    """Return what a call returns in a child.

    A table comes back batch by batch.

    Raises:
        FileDamaged: if the file cannot be read, or its reading ends the process.
    """
    if not _is_reached(images):
        return call()
    with _child() as child:
        found = child.ask([call])[0]
    if isinstance(found, _Died):
        raise call.damaged(found.last_words)
    return _value(found)


def each(images: Folder, calls: Sequence[Call[T, R]]) -> Iterator[R | FileDamaged]:
    """Yield what each call returns, or what is wrong with its file, in their order.

    Several run at once. Where the child dies, those without an answer are asked one by one, until
    it is known over which it does.
    """
    for begin in range(0, len(calls), _ASKED):
        asked = calls[begin : begin + _ASKED]
        if _is_reached(images):
            yield from _each(asked)
        else:
            yield from _here(asked)


def _here(calls: Sequence[Call[T, R]]) -> Iterator[R | FileDamaged]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for answer in pool.map(_answer, calls):
            yield _damage_or_value(answer)


def _each(calls: Sequence[Call[T, R]]) -> Iterator[R | FileDamaged]:
    left, singly = list(calls), False
    while left:
        with _child() as child:
            answers = child.ask(left[:1] if singly else left)
        for answer in answers:
            if not isinstance(answer, _Died):
                yield _damage_or_value(answer)
                left.pop(0)
            elif singly:
                yield left.pop(0).damaged(answer.last_words)
                singly = False
            else:
                singly = True


def _is_reached(images: Folder) -> bool:
    """Return whether a child is of use, and sees the same files."""
    return not _State.expendable and "memory://" not in images.root


# --- what is sent


@dataclass(frozen=True)
class _Died:
    """The child ended before it answered."""

    last_words: str


def _answer(call: Call[T, R]) -> "R | _Raised":
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - raised again where it was asked for
        return _Raised(error)


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _value(answer: "R | _Raised") -> R:
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


def _damage_or_value(answer: "R | _Raised") -> R | FileDamaged:
    if isinstance(answer, _Raised) and isinstance(answer.error, FileDamaged):
        return answer.error
    return _value(answer)


def _send(connection: Connection, answer: object) -> None:
    """Send a value; of a table its batches, so that no second copy of all of it is made."""
    if not isinstance(answer, pa.Table):
        connection.send_bytes(_pickled(answer))
        return
    batches = answer.to_batches()
    connection.send_bytes(pickle.dumps(_Batches(len(batches), answer.schema)))
    for batch in batches:
        # A stream of its own each: dictionaries may differ.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, answer.schema) as writer:
            writer.write_batch(batch)
        connection.send_bytes(sink.getvalue())


@dataclass(frozen=True)
class _Batches:
    count: int
    schema: pa.Schema


def _pickled(answer: object) -> bytes:
    if not isinstance(answer, _Raised):
        return pickle.dumps(answer)
    try:
        content = pickle.dumps(answer)
        pickle.loads(content)  # noqa: S301 - what was dumped above
    except Exception:  # noqa: BLE001 - an error of a library's that cannot be sent
        return pickle.dumps(_Raised(RuntimeError(f"{type(answer.error).__name__}: {answer.error}")))
    return content


def _received(connection: Connection) -> object:
    answer = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own child
    if not isinstance(answer, _Batches):
        return answer
    received = (connection.recv_bytes() for _ in range(answer.count))
    tables = [pa.ipc.open_stream(pa.py_buffer(content)).read_all() for content in received]
    return pa.concat_tables(tables) if tables else answer.schema.empty_table()


# --- the parent's side


def environment() -> dict[str, str]:
    """Return what a child gets of this process's environment."""
    return dict(os.environ)


class _Child:
    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        # Credentials are in it: where it has changed since, the child would be refused.
        self.environment = environment()
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        # What this process has found on its path may not be where a new one would look.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env={**self.environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            )

    def ask(self, calls: Sequence[Call[T, R]]) -> "list[R | _Raised | _Died]":
        """Return the answers in order; the last one is `_Died` where it died before the next."""
        answers: list[R | _Raised | _Died] = []
        try:
            self._connection.send(list(calls))
            while len(answers) < len(calls):
                answers.append(cast("R | _Raised", _received(self._connection)))
        except (EOFError, ConnectionError):
            answers.append(_Died(self._last_words()))
        return answers

    def _last_words(self) -> str:
        """Return how it ended, and what it said of it."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = f" ({lines[-1].strip()})" if lines else ""
        return f"the process that reads it ends with {how}{said}"

    @property
    def lives(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._said.close()


class _State:
    expendable = False


_LOCK = threading.Lock()
# Threads that call at the same time wait for one another: a further child would be started for a
# few calls and then ended.
_AT_WORK = threading.BoundedSemaphore(_KEPT)
_IDLE: list[_Child] = []


@contextlib.contextmanager
def _child() -> Iterator[_Child]:
    """Lend a child. One that is in the middle of something when the block ends is ended."""
    with _AT_WORK:
        yield from _lent()


def _lent() -> Iterator[_Child]:
    with _LOCK:
        child = _IDLE.pop() if _IDLE else None
    if child is not None and not (child.lives and child.environment == environment()):
        child.close()
        child = None
    child = child or _Child()
    try:
        yield child
    except BaseException:
        child.close()
        raise
    with _LOCK:
        kept = child.lives and len(_IDLE) < _KEPT
        if kept:
            _IDLE.append(child)
    if not kept:
        child.close()


@atexit.register
def close() -> None:
    """End the children that wait."""
    while _IDLE:
        _IDLE.pop().close()


# --- the child's side


def _serve(connection: Connection, parent: int) -> None:
    """Answer until the parent goes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # It ends with its parent, who knows what a signal means.
        signal.signal(number, signal.SIG_IGN)
    expendable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with ThreadPoolExecutor(_AT_ONCE) as pool, contextlib.suppress(EOFError, ConnectionError):
        while True:
            calls = connection.recv()
            answers = map(_answer, calls) if len(calls) == 1 else pool.map(_answer, calls)
            for answer in answers:
                _send(connection, answer)
            del calls, answers, answer


def _end_with(parent: int) -> None:
    """End when the parent has, whatever is being read."""
    while os.getppid() == parent:
        # The main thread's end ends this one.
        threading.Event().wait(_LOOKED_AT_S)
    os._exit(1)


_LOOKED_AT_S = 1.0

if __name__ == "__main__":
    from patchlake.pipeline.reading.apart import _serve as serve

    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
