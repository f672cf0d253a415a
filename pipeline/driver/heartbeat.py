"""The driver's sign of life, written beside the work for as long as the block lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from patchlake.pipeline import stopping
from patchlake.pipeline.errors import FragmentsFailed, PatchlakeError
from patchlake.pipeline.record.pulse import BEAT_S, Speed, beat, remove_pulse
from patchlake.pipeline.record.runs import Run

# Less than a job that is asked to stop has left (`stopping.GRACE_S`).
_LAST_BEAT_S = 4.0


class Heart:
    """Beats in a thread of its own; `measure` says how fast the work goes, once there is any."""

    def __init__(self, run: Run) -> None:
        self.measure: Callable[[], Speed | None] = lambda: None
        self.run = run
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once, and from now on."""
        self._beat()
        self._thread.start()

    def stop(self, reason: str | None) -> None:
        """Leave the reason behind, or nothing where the run has its summary."""
        self._ended.set()
        # A store that hangs must not keep the process from ending.
        self._thread.join(timeout=_LAST_BEAT_S)
        with suppress(OSError, ValueError, PatchlakeError):
            if reason is None:
                remove_pulse(self.run.folder, self.run.record.run)
            else:
                beat(self.run.folder, self.run.record.run, self.measure(), reason)

    def last_words(self) -> None:
        """Leave the reason of a stop behind, where the main thread does not come to it."""
        beat(self.run.folder, self.run.record.run, self.measure(), _asked())

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        # Whoever misses a beat looks after the store; the work itself finds out soon enough.
        with suppress(OSError, PatchlakeError):
            beat(self.run.folder, self.run.record.run, self.measure())


@contextmanager
def beating(run: Run) -> Iterator[Heart]:
    """Beat until the block ends, by its summary or by an error, which is told to `status`."""
    heart = Heart(run)
    heart.start()
    try:
        with stopping.abruptly(heart.last_words):
            yield heart
    except FragmentsFailed:
        heart.stop(None)
        raise
    except BaseException as error:
        # Of a stop, what was asked for, whatever that has become on its way up.
        heart.stop(_asked() or f"{type(error).__name__}: {error}")
        raise
    heart.stop(None)


def _asked() -> str | None:
    asked = stopping.reason()
    return f"Stopped: {asked}" if asked else None
