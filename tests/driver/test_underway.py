"""Images count as they pass the stages of a job, on both runners."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from patchlake.pipeline.cluster.attempts import Attempts, Reporter, _Register
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.observer import Advance, Note, no_note
from patchlake.pipeline.driver.underway import Underway
from patchlake.pipeline.headway import Passed, heard_by, listener


def test_images_count_when_they_have_passed_the_network():
    told: list[int] = []
    underway = Underway()
    underway.follow(told.append)
    underway.waits("the weights of lite0")
    assert underway.in_words() == "waits for the weights of lite0"
    underway.passed("decode", "a", 3)
    assert told == []
    assert underway.in_words() == "waits for the weights of lite0, 3 decoded"
    underway.waits("")
    underway.passed("infer", "a", 2)
    underway.passed("infer", "a", 3)
    underway.passed("publish", "a", 1)
    assert (told, underway.images) == ([2, 1], 3)
    assert underway.in_words() == "3 decoded, 1 written"
    # Of five rows two were not decoded; they are done with the others.
    underway.finish("a", 5)
    assert (told, underway.images) == ([2, 1, 2], 5)
    assert underway.in_words() == "5 decoded, 5 written"


def test_a_fragment_that_begins_again_and_late_news_take_nothing_back():
    told: list[int] = []
    underway = Underway()
    underway.follow(told.append)
    underway.passed("embed", "a", 4)
    underway.passed("embed", "a", 1)
    underway.passed("embed", "b", 2)
    assert told == [4]
    underway.finish("a", 4)
    underway.finish("b", 2)
    underway.passed("embed", "a", 3)
    assert (sum(told), underway.images) == (6, 6)


def test_nobody_hears_what_another_thread_does():
    told: list[int] = []
    underway = Underway()
    underway.follow(told.append)

    def elsewhere() -> None:
        Passed("infer", "b")(7)

    with heard_by(underway):
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        Passed("infer", "a")(1)
    Passed("infer", "c")(9)
    listener().waits("nobody")
    assert told == [1]
    assert underway.in_words() == ""


class _Notes:
    """An observer that keeps what it hears of each task."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.notes: dict[str, set[str]] = {}

    def task(self, what: str, total: int, unit: str, note: Note = no_note):
        del total, unit
        return _Task(self, what, note)


class _Task:
    def __init__(self, notes: _Notes, what: str, note: Note) -> None:
        self._steps = notes.steps.setdefault(what, [])
        self._notes = notes.notes.setdefault(what, set())
        self._note = note
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Advance:
        # As a bar on a terminal does, at once.
        self._notes.add(self._note())
        self._thread.start()
        return self._steps.append

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._notes.add(self._note())


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_job_tells_images_before_a_fragment_is_done(
    images: Path, tmp_path: Path, tiny: Settings, runner: str, local_ray: None
):
    """All 22 images of a group are one fragment."""
    settings = tiny.model_copy(update={"fragment_images": 256})
    heard = _Notes()
    execution = Execution(runner, observer=heard)
    model, scores = tmp_path / "model", tmp_path / "scores"
    fit.run(str(images), str(model), settings, execution)
    score.run(str(images), str(model), str(scores), settings, execution)
    for what in ("fit", "score"):
        assert sum(heard.steps[what]) == 44
        # On Ray news comes once a second, and so small a fragment may be done before.
        assert len(heard.steps[what]) > 2 or runner == "ray"
        assert any("decoded" in note for note in heard.notes[what])
    if runner == "local":
        assert any("waits for the weights of" in note for note in heard.notes["fit"])
        assert any("written" in note for note in heard.notes["score"])


@pytest.mark.slow
def test_what_workers_tell_reaches_the_driver_within_seconds(local_ray: None):
    told: list[int] = []
    underway = Underway()
    underway.follow(told.append)
    attempts = Attempts.start()
    with attempts.relaying(underway):
        reporter = Reporter(attempts)
        reporter.waits("the weights of lite0")
        with heard_by(reporter):
            passed = Passed("infer", "a")
            # The second comes too early to be told by itself.
            passed(2)
            passed(3)
        _until(lambda: underway.images == 2)
        reporter.flush()
        _until(lambda: underway.images == 5)
    assert sum(told) == 5
    reporter.passed("infer", "b", 7)
    reporter.flush()
    # Nobody asks any more.
    assert underway.images == 5


class _SlowToStart(_Register):
    """A register whose process takes as long as one does on a busy node."""

    def __init__(self) -> None:
        time.sleep(3)
        super().__init__()


@pytest.mark.slow
def test_what_is_told_before_the_register_has_started_is_not_lost(local_ray: None):
    underway = Underway()
    kind: Any = ray.remote(_SlowToStart)
    attempts = Attempts(kind.remote())
    with attempts.relaying(underway):
        Reporter(attempts).passed("infer", "a", 2)
        _until(lambda: underway.images == 2)
    assert underway.images == 2


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
