"""What a person sees: results on stdout, everything else on stderr."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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

log = logging.getLogger("patchlake")

# Without a terminal: a line now and then, as logs are kept.
_LOG_EVERY_S = 30.0

Advance = Callable[[int], None]


def set_up_logging() -> None:
    """Send patchlake's own log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far a job is, with an estimate: a bar on a terminal, else a line every 30 s."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _logged(what, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)


def _logged(what: str, total: int, unit: str) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if done < total and now - last < _LOG_EVERY_S:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        log.info("%s: %d of %d %s, %.1f a second%s", what, done, total, unit, rate, left)

    return advance


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result table on stdout."""
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def say(text: str) -> None:
    """Print a line of the result on stdout, as it is."""
    sys.stdout.write(f"{text}\n")
