"""What a person sees: results on stdout, everything else on stderr."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

log = logging.getLogger("patchlake")

# Without a terminal: a line now and then, as logs are kept.
_LOG_EVERY_S = 30.0

Advance = Callable[[int], None]


class _Escaping(logging.Formatter):
    """Writes no control characters: names of files and cells must not move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join(map(printable, lines))


def printable(text: str) -> str:
    """Return a text on one line, with what cannot be printed as Python escapes it."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def set_up_logging() -> None:
    """Send patchlake's own log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def progress(
    what: str, total: int, unit: str, note: Callable[[], str] = lambda: ""
) -> Iterator[Advance]:
    """Show how far a job is, with an estimate: a bar on a terminal, else a line every 30 s.

    Args:
        what: The work.
        total: Units in all.
        unit: Their name.
        note: Returns what else is to be said, whenever it is said.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        with _logged(_Count(what, total, unit, note)) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    count = _Count(what, total, unit, note)
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total, rate=unit, note="")

        def advance_bar(more: int) -> None:
            count.done += more
            rate = f"{unit}, {count.rate:.1f} a second"
            shown.update(task, advance=more, rate=rate, note=note())

        yield advance_bar


@contextmanager
def percent(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something is that tells (done, total)."""
    with progress(what, 100, "%") as advance:
        shown = 0

        def tell(done: int, total: int) -> None:
            nonlocal shown
            advance(100 * done // total - shown)
            shown = 100 * done // total

        yield tell


class _Count:
    def __init__(self, what: str, total: int, unit: str, note: Callable[[], str]) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.note = note
        self.done = 0
        self._started = time.monotonic()

    @property
    def rate(self) -> float:
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def __str__(self) -> str:
        left = ""
        if 0 < self.done < self.total:
            seconds = (self.total - self.done) / self.rate
            end = datetime.now(UTC).astimezone() + timedelta(seconds=seconds)
            left = f", {seconds:.0f} s left (until {end:%H:%M:%S})"
        note = self.note()
        return (
            f"{self.what}: {self.done} of {self.total} {self.unit}, {self.rate:.1f} a second{left}"
            f"{'; ' if note else ''}{note}"
        )


@contextmanager
def _logged(count: _Count) -> Iterator[Advance]:
    """Log a line every 30 s, also while nothing comes, and one when all is done."""
    ended = threading.Event()

    def log_on() -> None:
        while not ended.wait(_LOG_EVERY_S):
            log.info("%s", str(count))

    def advance(more: int) -> None:
        count.done += more
        if count.done >= count.total:
            ended.set()
            log.info("%s", str(count))

    thread = threading.Thread(target=log_on, name="progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result table on stdout."""
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def say(text: str) -> None:
    """Print a line of the result on stdout, as it is."""
    sys.stdout.write(f"{text}\n")
