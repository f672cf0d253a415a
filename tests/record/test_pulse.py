"""A run's state, from the last sign of life of its driver."""

import os
import socket
from datetime import timedelta

import pytest

from patchlake.pipeline.record.pulse import Pulse, Speed, beat, read_pulses, remove_pulse, state_of
from patchlake.pipeline.record.runs import now
from patchlake.pipeline.storage.folder import Folder

SPEED = Speed(
    images=10,
    images_done=4,
    error_rows=1,
    failed_fragments=0,
    images_per_second=2.5,
    seconds_left=2.4,
    stage_seconds={"infer": 1.5},
)


@pytest.mark.parametrize(
    ("host", "pid", "age_s", "stopped", "expected"),
    [
        (None, None, 0, None, "running"),
        ("elsewhere", 1, 60, None, "running"),
        # Its clock is ahead of ours.
        ("elsewhere", 1, -3600, None, "running"),
        ("elsewhere", 1, 200, None, "dead"),
        # Here no silence has to be waited for.
        (None, 2**22 + 1, 0, None, "dead"),
        (None, 2**22 + 1, 0, "Stopped: stopped by SIGTERM", "stopped"),
    ],
)
def test_the_state_of_a_run(host, pid, age_s, stopped, expected):
    at = now() - timedelta(seconds=age_s)
    host, pid = host or socket.gethostname(), pid or os.getpid()
    last = Pulse(host=host, pid=pid, at=at, stopped=stopped, speed=None)
    assert state_of(last, is_finished=False) == expected
    assert state_of(last, is_finished=True) == "finished"


def test_a_run_that_never_gave_a_sign_is_dead():
    assert state_of(None, is_finished=False) == "dead"


def test_a_pulse_is_read_as_it_was_written_and_goes(tmp_path):
    folder = Folder(str(tmp_path))
    beat(folder, "run1", SPEED, "DiskFull: no space")
    found = read_pulses(folder, ["run1", "run2"])
    assert list(found) == ["run1"]
    assert (found["run1"].speed, found["run1"].stopped) == (SPEED, "DiskFull: no space")
    assert found["run1"].pid == os.getpid()
    remove_pulse(folder, "run1")
    assert read_pulses(folder, ["run1"]) == {}
