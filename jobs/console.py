"""What a person sees: results on stdout, everything else on stderr."""

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from patchlake.pipeline import stopping
from patchlake.pipeline.driver.observer import Advance, Note, no_note
from patchlake.pipeline.shown import counted, printable, shown

log = logging.getLogger("patchlake")

# Without a terminal: seconds before each line. The first lines say that it works and how long it
# takes, and then one now and then is enough, as logs are kept.
_LOG_AFTER_S = (2.0, 3.0, 5.0, 10.0, 30.0)
# The descriptor of standard error.
_STDERR = 2


class _Escaping(logging.Formatter):
    """Writes no control characters: names of files and cells must not move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join(map(printable, lines))


class _Lines(logging.Handler):
    """Prints log lines, above a bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        except Exception:  # noqa: BLE001 - as in `logging`: a full disk must not end the job
            self.handleError(record)


class _Standing(Console):
    """A console whose reader may go, as of `2>&1 | head`: the job does not go with it."""

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


# What this process says of its own accord, but results.
_console = _Standing(stderr=True)


def set_up_logging() -> None:
    """Send patchlake's own log lines to stderr."""
    handler = _Lines(_console)
    handler.setFormatter(_Escaping("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def rays_own_aside() -> Iterator[None]:
    """Keep what Ray itself says in a file, until the block ends, and not between our lines.

    Its Python and its native code write to standard error: of a token that they made, of settings
    that none of ours follows, of errors that they then mend. In the block that is the file, and
    this module writes to a copy of what it was. The file is kept if there is anything in it.
    """
    # A submitted job's standard error is in a file already. And where it is not the descriptor that
    # native code writes to, somebody else (a test) has it.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or not _is_native(sys.stderr):
        yield
        return
    handle, path = tempfile.mkstemp(prefix="patchlake-ray-", suffix=".log")
    log.info("what Ray itself says goes to %s", path)
    with os.fdopen(os.dup(_STDERR), "w", buffering=1, errors="backslashreplace") as copy:
        os.dup2(handle, _STDERR)
        _console.file = copy
        stopping.say_to(copy.fileno())
        try:
            yield
        finally:
            os.dup2(copy.fileno(), _STDERR)
            stopping.say_to(_STDERR)
            _console.file = sys.stderr
            is_empty = os.fstat(handle).st_size == 0
            os.close(handle)
            if is_empty:
                os.unlink(path)


def _is_native(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == _STDERR
    except OSError:
        return False


class Terminal:
    """Shows how far a job is, with an estimate: a bar on a terminal, else a line now and then."""

    @contextmanager
    def task(self, what: str, total: int, unit: str, note: Note = no_note) -> Iterator[Advance]:
        """See `pipeline.driver.observer.Observer`."""
        count = _Count(what, total, unit, note)
        with _bar(count) if _console.is_terminal else _logged(count) as advance:
            yield advance


@contextmanager
def _bar(count: "_Count") -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        _Said(count),
    )
    with Progress(
        *columns, console=_console, redirect_stdout=False, redirect_stderr=False
    ) as shown:
        task = shown.add_task(count.what, total=count.total, unit=count.unit)

        def advance(more: int) -> None:
            count.add(more)
            shown.update(task, advance=more)

        yield advance


class _Said(ProgressColumn):
    """What else there is to say, also while nothing advances."""

    def __init__(self, count: "_Count") -> None:
        super().__init__()
        self._count = count

    def render(self, task: Task) -> Text:  # noqa: ARG002 - `ProgressColumn`
        """Return the rate and the note."""
        return Text("; ".join(filter(None, [self._count.speed, self._count.note()])))


class _Count:
    def __init__(self, what: str, total: int, unit: str, note: Note) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.note = note
        self.done = 0
        self._started = time.monotonic()
        # When the first came, and how many came with it: what was waited for before is not a rate.
        self._first: tuple[float, int] | None = None

    def add(self, more: int) -> None:
        self.done += more
        self._first = self._first or (time.monotonic(), self.done)

    @property
    def rate(self) -> float | None:
        """Units a second; None while that is not known."""
        if self._first is None or self.done == self._first[1]:
            return None
        return (self.done - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    @property
    def speed(self) -> str:
        return "" if self.rate is None or self.unit == "%" else f"{self.rate:.1f} a second"

    def __str__(self) -> str:
        said = [f"{self.what}: {self.done} of {counted(self.total, self.unit)}", self.speed]
        rate = self.rate
        if rate and self.done < self.total:
            seconds = (self.total - self.done) / rate
            end = datetime.now(UTC).astimezone() + timedelta(seconds=seconds)
            said.append(f"{seconds:.0f} s left (until {end:%H:%M:%S})")
        return "; ".join(filter(None, [", ".join(filter(None, said)), self.note()]))

    def end(self) -> str:
        """Return what is said when all are done."""
        seconds = time.monotonic() - self._started
        rate = self.total / max(seconds, 1e-9)
        said = f"{self.what}: {counted(self.total, self.unit)} in {seconds:.0f} s"
        speed = "" if self.unit == "%" else f", {rate:.1f} a second"
        return "; ".join(filter(None, [said + speed, self.note()]))


@contextmanager
def _logged(count: _Count) -> Iterator[Advance]:
    """Log a line after 2 s and then less often, also while nothing comes, and one at the end."""
    ended = threading.Event()

    def log_on() -> None:
        for pause in chain(_LOG_AFTER_S, repeat(_LOG_AFTER_S[-1])):
            if ended.wait(pause):
                return
            log.info("%s", str(count))

    thread = threading.Thread(target=log_on, name="progress", daemon=True)
    thread.start()
    try:
        yield count.add
    finally:
        ended.set()
        thread.join()
    if count.done >= count.total > 0:
        log.info("%s", count.end())


# Of a table: text of one line, or several lines.
Cell = str | tuple[str, ...]


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a result table on stdout."""
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _text(cell: Cell) -> Text:
    lines = (cell,) if isinstance(cell, str) else cell
    return Text("\n".join(printable(line) for line in lines))


def say_reading(what: str) -> None:
    """Say at once what comes first: libraries are loaded for a second or more before that."""
    # Whether it carries credentials is found out later.
    log.info("reading what there is in %s", shown(what)[1:-1])


def say(text: str) -> None:
    """Print a line of the result on stdout, as it is."""
    sys.stdout.write(f"{text}\n")
