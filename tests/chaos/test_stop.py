"""A first signal ends any job at any moment, within ten seconds; then the same command goes on."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.checking import check_no_orphans, check_no_temporaries
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT, Job, Start, wait_for
from tests.conftest import output_files, soak

# A moment's place in the run is drawn anew in each of as many equal stretches of it.
MOMENTS = {"score": 5, "fit": 6, "ingest": 5, "evaluate": 5, "score on Ray": 6}
# Until it has ended; and until what it has started has.
_ENDS_S, _GONE_S = 10, 5
# From a signal to the end of a process that was at its own end.
_OVER_S = 0.5


@pytest.mark.parametrize("verb", ["score", *map(soak, list(MOMENTS)[1:])])
def test_a_signal_at_any_moment(
    verb: str,
    pictures: Path,
    images: Path,
    model: Path,
    oracle: Path,
    tmp_path: Path,
    start,
    faults,
):
    """Twenty-seven moments in all, the imports and the start of Ray among them."""
    flags, target = (*FLAGS, *SCORED_AT), tmp_path / "target"
    scoring = ("score", images, model, target, *flags)
    commands = {
        "score": (*scoring, "--runner", "local"),
        "score on Ray": (*scoring, "--runner", "ray"),
        "fit": ("fit", images, target, *flags, "--runner", "local"),
        "ingest": ("ingest", pictures, target, "--runner", "local"),
        "evaluate": ("evaluate", images, oracle),
    }
    begin = partial(start, *commands[verb])
    length_s = _undisturbed(begin)
    wanted = _results(target)
    shutil.rmtree(target, ignore_errors=True)
    draw, count = random.Random(verb), MOMENTS[verb]
    for stretch in range(count):
        number = draw.choice([signal.SIGINT, signal.SIGTERM])
        moment_s = length_s * (stretch + draw.random()) / count
        _stop(begin, moment_s, number, target)
        check_no_temporaries(target)
        for name, content in _results(target).items():
            assert content == wanted[name], name
    code, said = begin().end()
    assert code == 0, said
    assert _results(target) == wanted


def _results(target: Path) -> dict[str, bytes]:
    """Return what a command has written, but what says when: the record of runs, the manifest."""
    return {name: one for name, one in output_files(target).items() if name != "model.json"}


def _undisturbed(begin: Callable[[], Job]) -> float:
    """Run it to its end; return the seconds that it took."""
    started = time.monotonic()
    code, said = begin().end()
    assert code == 0, said
    return time.monotonic() - started


def _stop(begin: Callable[[], Job], moment_s: float, number: signal.Signals, target: Path) -> None:
    """Send it a signal at a moment; one that had ended by then is started again, for an earlier."""
    job = begin()
    deadline = time.monotonic() + moment_s
    while not _is_ours(job):
        time.sleep(0.001)
    while time.monotonic() < deadline and job.process.poll() is None:
        time.sleep(0.005)
    if job.process.poll() is not None:
        assert job.end()[0] == 0
        shutil.rmtree(target, ignore_errors=True)
        _stop(begin, moment_s * 0.7, number, target)
        return
    job.process.send_signal(number)
    sent = time.monotonic()
    code, said = job.end(timeout_s=_ENDS_S)
    if code == 0 and time.monotonic() - sent < _OVER_S:
        # All was done, and the process on its last line: nothing was left to stop. A signal that
        # is lost in the middle of a job shows at the earlier moment.
        shutil.rmtree(target, ignore_errors=True)
        _stop(begin, moment_s * 0.7, number, target)
        return
    assert code == 4, said
    assert "Traceback" not in said
    assert said.count("stopped by") == 1
    assert said.splitlines()[-1].endswith(
        f" stopped by {number.name}; the same command goes on from here"
    )
    check_no_orphans(job.mark, _GONE_S)


def _is_ours(job: Job) -> bool:
    """Return whether the interpreter has come as far as our own first line, or has ended."""
    status = Path(f"/proc/{job.process.pid}/status").read_text()
    [blocked] = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1) or job.process.poll() is not None


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_second_signal_ends_it_at_once(
    runner: str, images: Path, model: Path, oracle: Path, tmp_path: Path, start: Start, faults
):
    scores = tmp_path / "scores"
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT, "--runner")
    faults.plan(slow={"infer": 2, "decode": 2})
    job = start(*command, runner)
    wait_for(scores, "_runs/*/pulse.json", 1)
    time.sleep(3)
    job.process.send_signal(signal.SIGINT)
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end(timeout_s=3)
    assert code == 4, said
    assert said.count("stopped by") == 1
    check_no_orphans(job.mark, _GONE_S)
    check_no_temporaries(scores)
    faults.plan()
    assert start(*command, "local").end()[0] == 0
    assert output_files(scores) == output_files(oracle)
    assert list(scores.glob(PARTS))
