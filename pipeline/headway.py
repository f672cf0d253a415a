"""How far the fragments at hand are: an image counts as soon as it has passed a stage.

A stage tells the listener of the thread that calls it: the driver itself, or in a worker of a
cluster what the driver asks. No result depends on it. A listener may hear of a fragment again, from
a stage that is tried again, and of some fragments nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """Who is told. May be called in several threads at once."""

    def passed(self, stage: str, key: str, images: int) -> None:
        """Hear how many images of the fragment of this key have passed a stage so far."""

    def waits(self, what: str) -> None:
        """Hear what is waited for, as "the weights of lite0", or by "" that it has come."""


class Nobody:
    """Hears nothing."""

    def passed(self, stage: str, key: str, images: int) -> None:
        """See `Listener`."""

    def waits(self, what: str) -> None:
        """See `Listener`."""


_NOBODY = Nobody()
_listener: ContextVar[Listener] = ContextVar("listener", default=_NOBODY)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Have the stages that this thread calls in the block tell this listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Listener:
    """Return the listener of this thread."""
    return _listener.get()


class Passed:
    """Counts the images of one fragment that have passed one stage.

    Made in the thread that calls the stage, and called in any.
    """

    def __init__(self, stage: str, key: str) -> None:
        self._stage, self._key = stage, key
        self._listener = _listener.get()
        self._lock = threading.Lock()
        self._images = 0

    def __call__(self, images: int) -> None:
        """Count so many more."""
        with self._lock:
            self._images += images
            self._listener.passed(self._stage, self._key, self._images)
