"""What a job says of its progress where there is no terminal."""

import logging
import re
import time

import pytest

from patchlake.jobs import console
from patchlake.pipeline.driver.drive import Tally
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
    monkeypatch.setattr(console, "_LOG_EVERY_S", 0.05)
    with (
        caplog.at_level(logging.INFO, "patchlake"),
        console.Terminal().task("score", 10, "images", lambda: "2 error rows") as advance,
    ):
        time.sleep(0.3)
        silent = len(caplog.messages)
        advance(4)
        time.sleep(0.2)
        advance(6)
        finished = len(caplog.messages)
        time.sleep(0.2)
    assert silent >= 1
    assert re.fullmatch(r"score: 0 of 10 images, 0.0 a second; 2 error rows", caplog.messages[0])
    between = next(message for message in caplog.messages if message.startswith("score: 4 of 10"))
    assert re.search(r"a second, \d+ s left \(until \d\d:\d\d:\d\d\); 2 error rows", between)
    # The end is said once, and then no more.
    assert len(caplog.messages) == finished
    assert caplog.messages[-1].startswith("score: 10 of 10 images")


def test_a_tally_tells_errors_and_the_time_of_each_operator():
    tally = Tally()
    assert tally.in_words() == "0 error rows, 0 fragments failed"
    assert tally.speed(12).seconds_left is None
    tally.add(result(statuses={"ok": 3, "missing": 1}, seconds={"infer": 0.2, "decode": 0.04}))
    tally.add(result(key="f", failure="infer: RuntimeError: 7", seconds={"decode": 0.04}))
    assert tally.in_words() == "decode 10, infer 25 ms an image; 1 error rows, 1 fragments failed"
    speed = tally.speed(12)
    assert (speed.images, speed.images_done, speed.error_rows, speed.failed_fragments) == (
        12,
        8,
        1,
        1,
    )
    assert speed.seconds_left == pytest.approx(4 / speed.images_per_second)
    assert speed.stage_seconds == pytest.approx({"infer": 0.2, "decode": 0.08})
