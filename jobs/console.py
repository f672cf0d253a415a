"""What a person sees: results on stdout, everything else on stderr."""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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

from patchlake.pipeline.driver.observer import Advance, Note, no_note
from patchlake.pipeline.shown import printable

log = logging.getLogger("patchlake")

# Without a terminal: a line now and then, as logs are kept.
_LOG_EVERY_S = 30.0


class _Escaping(logging.Formatter):
    """Writes no control characters: names of files and cells must not move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join(map(printable, lines))


def set_up_logging() -> None:
    """Send patchlake's own log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class Terminal:
    """Shows how far a job is, with an estimate: a bar on a terminal, else a line every 30 s."""

    @contextmanager
    def task(self, what: str, total: int, unit: str, note: Note = no_note) -> Iterator[Advance]:
        """See `pipeline.driver.observer.Observer`."""
        console = Console(stderr=True)
        count = _Count(what, total, unit, note)
        with _bar(console, count) if console.is_terminal else _logged(count) as advance:
            yield advance


@contextmanager
def _bar(console: Console, count: "_Count") -> Iterator[Advance]:
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
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(count.what, total=count.total, rate=count.unit, note="")

        def advance(more: int) -> None:
            count.done += more
            rate = f"{count.unit}, {count.rate:.1f} a second"
            shown.update(task, advance=more, rate=rate, note=count.note())

        yield advance


class _Count:
    def __init__(self, what: str, total: int, unit: str, note: Note) -> None:
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
