"""The one way in which a job says how far it is: a terminal, a log, or an object of the caller's.

What happened besides is logged (`logging`, below the logger "patchlake"), and what came of it is
returned, or carried by the error.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

# Called with the number of units that were done since the last call.
Advance = Callable[[int], None]
# Returns what else there is to say whenever progress is shown, as one line or nothing.
Note = Callable[[], str]


def no_note() -> str:
    """Return nothing to say."""
    return ""


@runtime_checkable
class Observer(Protocol):
    """Who is told how far a job is.

    Begins and ends tasks in one thread. A task may be advanced in others, one call at a time, and a
    note may be asked for in any.
    """

    def task(
        self, what: str, total: int, unit: str, note: Note = no_note
    ) -> AbstractContextManager[Advance]:
        """Begin a task, which ends with the block, by an exception or not.

        Args:
            what: The work, as "score" or "fit of tile".
            total: Units in all.
            unit: Their name, as "images".
            note: What else is to be said.
        """


class Silent:
    """Says nothing: what a library does unless it is asked."""

    @contextmanager
    def task(self, what: str, total: int, unit: str, note: Note = no_note) -> Iterator[Advance]:
        """See `Observer`."""
        del what, total, unit, note
        yield lambda _: None


@contextmanager
def fraction(observer: Observer, what: str) -> Iterator[Callable[[int, int], None]]:
    """Begin a task that tells (done, total) as it goes; the observer sees percent."""
    with observer.task(what, 100, "%") as advance:
        seen = 0

        def on_progress(done: int, total: int) -> None:
            nonlocal seen
            now = 100 * done // total
            advance(now - seen)
            seen = now

        yield on_progress
