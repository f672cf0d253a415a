"""What dies beside the driver: workers, raylets, members. The job goes on and writes the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchlake.pipeline.driver import status
from tests.chaos.checking import check_model, check_scores, check_what_is_there
from tests.chaos.conftest import FLAGS, PARTS, ROOT, SCORED_AT, wait_for
from tests.conftest import soak


@pytest.fixture
def scoring(images: Path, model: Path, tmp_path: Path, nodes, start):
    def run():
        command = ("score", images, model, tmp_path / "scores", *FLAGS, *SCORED_AT)
        return start(*command, "--address", nodes.address)

    return run


@pytest.mark.parametrize("stage", [soak("decode"), "infer", soak("publish")])
def test_a_worker_that_is_killed_at_work(
    stage: str, scoring, images: Path, oracle: Path, tmp_path: Path, faults
):
    faults.plan(slow={stage: 1})
    job = scoring()
    os.kill(faults.worker(stage), signal.SIGKILL)
    code, said = job.end()
    assert code == 0, said
    check_scores(tmp_path / "scores", images, oracle)


def test_a_raylet_that_is_killed_while_scoring(
    scoring, images: Path, oracle: Path, tmp_path: Path, nodes, faults
):
    faults.plan(slow={"infer": 1})
    job = scoring()
    wait_for(tmp_path / "scores", PARTS, 3)
    nodes.kill_one()
    assert job.process.poll() is None
    code, said = job.end()
    assert code == 0, said
    check_scores(tmp_path / "scores", images, oracle)


@pytest.mark.soak
def test_a_raylet_that_is_killed_while_fitting(
    images: Path, model: Path, tmp_path: Path, nodes, start, faults
):
    faults.plan(slow={"embed": 1})
    fitted = tmp_path / "model"
    flags = (*FLAGS, *SCORED_AT)
    job = start("fit", images, fitted, *flags, "--address", nodes.address)
    wait_for(fitted, "_runs/*/partials/*.embeddings.arrow", 3)
    nodes.kill_one()
    assert job.process.poll() is None
    code, said = job.end()
    assert code == 0, said
    undisturbed = tmp_path / "undisturbed"
    faults.plan()
    assert start("fit", images, undisturbed, *flags, "--runner", "local").end()[0] == 0
    check_model(fitted, undisturbed)


@pytest.mark.soak
def test_a_worker_that_is_killed_for_its_memory(
    scoring, images: Path, oracle: Path, tmp_path: Path, faults, memory_group: str
):
    """By the kernel where this may make a control group of memory, else by SIGKILL, as it does."""
    place = ("woven_cloth", 3)
    faults.plan(stage="infer", place=_file(images, *place), do="oom", times=1, cgroup=memory_group)
    code, said = scoring().end()
    assert code == 0, said
    assert (faults.folder / "counted" / "0").exists(), "nothing was killed"
    if memory_group:
        events = (Path(memory_group) / "memory.oom_control").read_text()
        assert "oom_kill 1" in events
    check_scores(tmp_path / "scores", images, oracle)


def test_a_fragment_that_kills_every_worker_is_given_up_and_the_others_are_not(
    scoring, images: Path, model: Path, oracle: Path, tmp_path: Path, faults, start
):
    scores = tmp_path / "scores"
    faults.plan(stage="infer", place=_file(images, "woven_cloth", 3), do="kill")
    code, said = scoring().end()
    assert code == 3, said
    assert "its worker died 3 times while processing it" in said
    [run] = status.read(str(scores))
    assert (run.state, run.failed, run.pending) == ("finished", 1, 0)
    assert run.done == run.fragments - 1
    assert "infer: its worker died 3 times" in next(iter(run.failures.values()))
    check_what_is_there(scores, oracle)
    # What killed them is mended: the same command does what is left, here in one process.
    faults.plan()
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT, "--runner", "local")
    code, said = start(*command).end()
    assert code == 0, said
    check_scores(scores, images, oracle)


# 16 MB; what is less than 100 kB would be kept by the driver.
SHARING = """
import sys
import numpy as np
import ray
from patchlake.pipeline.cluster.on_ray import RayRunner
from patchlake.pipeline.index.exact import ExactSearch

address, path = sys.argv[1:]

def make():
    with open(path, "a") as made:
        print("made", file=made)
    rows = np.random.default_rng(0).normal(size=(20_000, 100)).astype(np.float32)
    return ExactSearch.over(rows)

def nearest():
    return shared.get().nearest(np.ones((1, 100), np.float32), 3)[1].tolist()

ray.init(address, log_to_driver=False)
runner = RayRunner(workers=4)
shared = runner.sharing().share(make)
for _ in range(2):
    print("found", *runner.each([nearest, nearest]), flush=True)
    input()
"""


def test_a_bank_whose_nodes_are_all_killed_is_made_again(tmp_path: Path, nodes):
    made = tmp_path / "made"
    command = [sys.executable, "-c", SHARING, nodes.address, made]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT) as script:
        try:
            before = _found(script)
            assert made.read_text() == "made\n"
            nodes.kill_one()
            nodes.kill_one()
            nodes.fill()
            script.stdin.write("\n")
            script.stdin.flush()
            assert _found(script) == before
            assert made.read_text() == "made\nmade\n"
            script.communicate("\n", timeout=60)
            assert script.returncode == 0
        finally:
            script.kill()


def _found(script: subprocess.Popen[str]) -> str:
    # Ray tells here, too, of the raylets that it misses.
    return next(line for line in script.stdout if line.startswith("found "))


def _file(images: Path, group: str, start: int) -> tuple[str, int]:
    [file] = (images / f"g={group}").glob("*.parquet")
    return str(file.relative_to(images)), start


@pytest.fixture
def memory_group():
    """A control group of 100 MiB, or "" where this process may not make one."""
    group = Path(f"/sys/fs/cgroup/memory/patchlake-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 * 2**20))
    except OSError:
        yield ""
        return
    yield str(group)
    while (group / "cgroup.procs").read_text():
        time.sleep(0.1)
    group.rmdir()
