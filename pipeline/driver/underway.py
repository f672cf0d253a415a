"""Images of the fragments that are under way, for whoever watches the job.

Results come by the fragment, and one of 256 images can take half a minute.
"""

import threading
from collections import deque

from patchlake.pipeline.driver.observer import Advance

# The stages that take the longest, of which a pipeline has one: an image that has passed it counts.
_COUNTED = ("embed", "infer", "pack")
# The others, and what is said of the images that have passed them.
_SAID = {"decode": "decoded", "publish": "written"}
# Of so many fragments, the last that were done, it is known that news of them comes too late: on a
# cluster it is a second behind.
_REMEMBERED = 1024


class Underway:
    """Counts images as they pass the stages. See `headway.Listener`."""

    def __init__(self) -> None:
        self._advance: Advance = lambda _: None
        self._lock = threading.Lock()
        # Stage -> key of a fragment -> its images that have passed.
        self._passed: dict[str, dict[str, int]] = {}
        self._done = 0
        self._told = 0
        self._late: deque[str] = deque(maxlen=_REMEMBERED)
        self._awaited = ""

    def follow(self, advance: Advance) -> None:
        """From now on, advance a task."""
        self._advance = advance

    def passed(self, stage: str, key: str, images: int) -> None:
        """See `headway.Listener`."""
        with self._lock:
            if key in self._late:
                return
            self._passed.setdefault(stage, {})[key] = images
            if stage in _COUNTED:
                self._awaited = ""
            self._tell()

    def waits(self, what: str) -> None:
        """See `headway.Listener`."""
        with self._lock:
            self._awaited = what

    def finish(self, key: str, images: int) -> None:
        """Count a fragment as done, with all of its images, whatever became of them."""
        with self._lock:
            self._late.append(key)
            for keys in self._passed.values():
                keys.pop(key, None)
            self._done += images
            self._tell()

    @property
    def images(self) -> int:
        """Images that count as done."""
        return self._told

    def in_words(self) -> str:
        """Return what is waited for, and how many images have passed the other stages."""
        with self._lock:
            said = [f"waits for {self._awaited}"] if self._awaited else []
            for stage, word in _SAID.items():
                if stage in self._passed:
                    count = self._done + sum(self._passed[stage].values())
                    said.append(f"{count} {word}")
        return ", ".join(said)

    def _tell(self) -> None:
        under_way = sum(sum(self._passed.get(stage, {}).values()) for stage in _COUNTED)
        more = self._done + under_way - self._told
        # A fragment that is tried again begins again: what was told is not taken back.
        if more > 0:
            self._told += more
            self._advance(more)
