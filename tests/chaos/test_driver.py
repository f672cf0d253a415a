"""What happens to the driver: killed, asked to stop, started twice, or its clock jumps."""

import json
import random
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import status
from tests.chaos.checking import (
    check_model,
    check_no_temporaries,
    check_scores,
    check_what_is_there,
)
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT, wait_for
from tests.conftest import by_place, soak

# Most in one process, which starts in a third of the time; the others on a cluster.
KILLS, ON_RAY = 13, (3, 6, 10)


@pytest.mark.soak
def test_a_driver_that_is_killed_at_random_moments(
    images: Path, model: Path, oracle: Path, tmp_path: Path, nodes, start, faults
):
    """Ten times in one process and three times on a cluster, into one table, by one command."""
    scores = tmp_path / "scores"
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT)
    # Fragments take long enough that few are done before a kill.
    faults.plan(slow={"infer": 0.9, "publish": 0.2})
    moments = random.Random(5)
    parts: list[int] = []
    for kill in range(KILLS):
        where = ("--address", nodes.address) if kill in ON_RAY else ("--runner", "local")
        job = start(*command, *where)
        if kill % 2 == 0:
            # Wherever it is then: importing, planning, connecting.
            time.sleep(moments.uniform(0.5, 6))
        else:
            seen = len(list(scores.glob(PARTS)))
            deadline = time.monotonic() + 240
            while len(list(scores.glob(PARTS))) == seen and job.process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.7))
        job.process.kill()
        job.end()
        parts.append(len(list(scores.glob(PARTS))))
        if parts[-1]:
            [run] = status.read(str(scores))
            assert run.state in ("dead", "finished")
    # Kills before the first part, between two, and after the last.
    assert len(set(parts)) > 5, parts
    faults.plan()
    code, said = start(*command, "--runner", "local").end()
    assert code == 0, said
    check_scores(scores, images, oracle)


@pytest.mark.parametrize("runner", ["local", soak("ray")])
def test_sigterm_is_a_clean_stop(
    runner: str, images: Path, model: Path, oracle: Path, tmp_path: Path, start, faults
):
    scores = tmp_path / "scores"
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT, "--runner", runner)
    faults.plan(slow={"infer": 0.3})
    job = start(*command)
    wait_for(scores, PARTS, 2)
    [run] = status.read(str(scores))
    assert run.state == "running"
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end(timeout_s=10)
    assert code == 4, said
    assert "stopped by SIGTERM; the same command goes on from here" in said
    [run] = status.read(str(scores))
    assert (run.state, run.failed) == ("stopped", 0)
    assert 2 <= run.done < run.fragments
    assert "SIGTERM" in (run.stopped or "")
    assert run.speed is not None
    assert 0 < run.speed.images_done <= run.images_done
    check_what_is_there(scores, oracle)
    faults.plan()
    code, said = start(*command).end()
    assert code == 0, said
    check_scores(scores, images, oracle)


@pytest.mark.soak
def test_two_drivers_score_at_once(
    images: Path, model: Path, oracle: Path, tmp_path: Path, nodes, start, faults
):
    scores = tmp_path / "scores"
    faults.plan(slow={"infer": 0.1})
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT)
    both = [start(*command, "--address", nodes.address), start(*command, "--runner", "local")]
    for job in both:
        code, said = job.end()
        assert code == 0, said
    check_scores(scores, images, oracle)


def test_two_drivers_fit_at_once(images: Path, model: Path, tmp_path: Path, start, faults):
    fitted = tmp_path / "model"
    faults.plan(slow={"embed": 0.1})
    command = ("fit", images, fitted, *FLAGS, *SCORED_AT, "--runner", "local")
    first = start(*command)
    wait_for(fitted, "_runs/*/partials/*.embeddings.arrow", 3)
    # Slower at what is left: the first has published and cleared away meanwhile.
    second = start(*command)
    for job in (first, second):
        code, said = job.end()
        assert code == 0, said
    undisturbed = tmp_path / "undisturbed"
    faults.plan()
    assert start("fit", images, undisturbed, *command[3:]).end()[0] == 0
    check_model(fitted, undisturbed)


def test_a_clock_that_jumps(
    images: Path, model: Path, oracle: Path, tmp_path: Path, start, faults, cut: Settings
):
    """A day to and fro each second, in the driver: `time.time` and the run's `now` are patched."""
    scores = tmp_path / "scores"
    faults.plan(clock=86_400, slow={"infer": 0.2})
    command = ("score", images, model, scores, *FLAGS, "--runner", "local")
    jumping = {"PATCHLAKE_CHAOS_CLOCK": "1"}
    job = start(*command, environment=jumping)
    wait_for(scores, PARTS, 3)
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 4
    code, said = start(*command, environment=jumping).end()
    assert code == 0, said
    # The time of its rows is the run's: one, however often it was started. With it the undisturbed
    # rows are the same; another `scored_at` is another version, and so has other names.
    [record] = [json.loads(path.read_text()) for path in scores.glob("_runs/*/run.json")]
    rows = by_place(scores)
    assert {row["scored_at"] for row in rows.values()} == {
        datetime.fromisoformat(record["started_at"])
    }
    for place, row in by_place(oracle).items():
        for name in ("image_score", "anomaly_map", "status", "model_id", "image_id"):
            assert rows[place][name] == row[name]
    assert len(rows) == len(by_place(oracle))
    [path] = scores.glob("_runs/*/summary.json")
    summary = json.loads(path.read_text())
    assert 0 < summary["seconds"] < 300
    assert all(0 <= seconds < 300 for seconds in summary["stage_seconds"].values())
    check_no_temporaries(scores)
