"""What a job says of its progress."""

import errno
import io
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from patchlake.jobs import console
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score
from patchlake.pipeline.driver.drive import Tally
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.stages.batch import FragmentResult


def result(**changed):
    fields = {
        "key": "k",
        "path": "a.parquet",
        "planned": 4,
        "statuses": {},
        "duplicates": 0,
        "failure": None,
        "seconds": {},
        "nodes": {},
    }
    return FragmentResult(**fields | changed)


def test_lines_come_also_while_nothing_is_finished(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(console, "_LOG_AFTER_S", (0.05,))
    with (
        caplog.at_level(logging.INFO, "patchlake"),
        console.Terminal().task("score", 10, "images", lambda: "2 error rows") as advance,
    ):
        time.sleep(0.3)
        silent = len(caplog.messages)
        advance(1)
        time.sleep(0.1)
        advance(3)
        time.sleep(0.2)
        advance(6)
    assert silent >= 1
    # Before two have come there is no rate: what was waited for before the first is none.
    assert caplog.messages[0] == "score: 0 of 10 images; 2 error rows"
    assert "score: 1 of 10 images; 2 error rows" in caplog.messages
    between = next(message for message in caplog.messages if message.startswith("score: 4 of 10"))
    assert re.search(
        r"images, \d+\.\d a second, \d+ s left \(until \d\d:\d\d:\d\d\); 2 error rows", between
    )
    # The end is said once, with what all took.
    ends = [m for m in caplog.messages if re.match(r"score: 10 images in \d+ s, \d+\.\d a sec", m)]
    assert ends == caplog.messages[-1:]


def test_an_estimate_is_of_what_came_after_the_first():
    count = console._Count("score", 101, "images", str)
    count._started -= 1000
    count.add(1)
    count._first = (time.monotonic() - 10, 1)
    count.add(50)
    assert count.rate == pytest.approx(5, rel=0.01)
    assert re.search(r"5\.0 a second, 10 s left", str(count))


def test_percent_have_no_rate():
    count = console._Count("fit of tile", 100, "%", str)
    count.add(10)
    count.add(40)
    assert re.fullmatch(r"fit of tile: 50 of 100 %, \d+ s left \(until .*\)", str(count))
    assert count.end() == "fit of tile: 100 % in 0 s"


def test_a_bar_says_what_comes_between_its_steps(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "_console", Console(file=screen, force_terminal=True, width=200, color_system=None)
    )
    heard = ["waits for the weights of lite0"]
    with console.Terminal().task("score", 10, "images", lambda: heard[-1]) as advance:
        time.sleep(0.3)
        heard.append("[7] decoded")
        time.sleep(0.3)
        advance(10)
    shown = screen.getvalue()
    assert shown.index("waits for the weights") < shown.index("[7] decoded")
    assert "10/10" in shown


def test_a_job_shows_a_bar_on_a_terminal(
    images: Path, model: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
):
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "_console", Console(file=screen, force_terminal=True, width=200, color_system=None)
    )
    execution = Execution("local", observer=console.Terminal())
    score.run(str(images), str(model), str(tmp_path), tiny, execution)
    assert "44/44" in screen.getvalue()
    assert "0 error rows" in screen.getvalue()


class _Gone(io.StringIO):
    """A reader that has gone, or a disk that is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, _: str) -> int:
        raise self._error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full")])
def test_a_standard_error_that_is_gone_ends_no_job(error: OSError, capsys: pytest.CaptureFixture):
    lines = console._Lines(console._Standing(file=_Gone(error)))
    lines.emit(logging.makeLogRecord({"msg": "done"}))
    lines.emit(logging.makeLogRecord({"msg": "done"}))
    assert capsys.readouterr().out == ""


def test_a_task_that_fails_or_has_nothing_to_do_has_no_end(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "patchlake")
    with console.Terminal().task("ingest", 0, "files"):
        pass

    def fail() -> None:
        with console.Terminal().task("score", 1, "images") as advance:
            advance(1)
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        fail()
    assert caplog.messages == []


def test_what_is_read_is_said_without_secrets(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "patchlake")
    console.say_reading("s3://KEY:SECRET@bucket/images?X-Amz-Signature=abc")
    assert caplog.messages == ["reading what there is in s3://...@bucket/images?..."]


def test_ours_is_on_stderr_and_what_others_write_there_goes_to_a_file(tmp_path: Path):
    """In a process of its own: it is the descriptor of standard error that is moved."""
    script = """
import logging, os, sys
from patchlake.jobs import console
console.set_up_logging()
with console.rays_own_aside():
    os.write(2, b"of native code\\n")
    print("of Python", file=sys.stderr)
    console.log.info("of [ours]")
    with console.Terminal().task("score", 1, "images") as advance:
        advance(1)
print("afterwards", file=sys.stderr)
with console.rays_own_aside():
    pass
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    env.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    # Of the second time there was nothing to keep.
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == "of native code\nof Python\n"
    assert [line.partition(" ")[2] for line in done.stderr.splitlines()[:3]] == [
        f"what Ray itself says goes to {kept}",
        "of [ours]",
        "score: 1 image in 0 s, " + done.stderr.splitlines()[2].rpartition(", ")[2],
    ]
    assert done.stderr.splitlines()[3] == "afterwards"
    assert done.stdout == ""


def test_a_tally_tells_errors_and_the_time_of_each_operator():
    tally = Tally()
    assert tally.in_words() == "0 error rows, 0 fragments failed"
    assert tally.speed(12, 0).seconds_left is None
    tally.add(result(statuses={"ok": 3, "missing": 1}, seconds={"infer": 0.2, "decode": 0.04}))
    tally.add(result(key="f", failure="infer: RuntimeError: 7", seconds={"decode": 0.04}))
    assert tally.in_words() == "decode 10, infer 25 ms an image; 1 error rows, 1 fragments failed"
    speed = tally.speed(12, 9)
    assert (speed.images, speed.images_done, speed.error_rows, speed.failed_fragments) == (
        12,
        8,
        1,
        1,
    )
    assert speed.seconds_left == pytest.approx(3 / speed.images_per_second)
    assert speed.stage_seconds == pytest.approx({"infer": 0.2, "decode": 0.08})
