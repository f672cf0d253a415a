"""A cluster of real raylets, jobs as processes of their own, and the undisturbed run's bytes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import score
from patchlake.pipeline.reading import apart
from tests.chaos.checking import check_no_orphans, check_no_workers
from tests.conftest import LOCAL, TINY

ROOT = Path(__file__).parents[2]
# 16 fragments of 44 images: enough for a fault to fall between two.
CUT = {"fragment_images": 3}
FLAGS = (
    *("--set", "image.resize=[64, 64]", "--set", "backbone.name=resnet10t.c3_in1k"),
    *("--set", "backbone.weights=untrained", "--set", "method.coreset_fraction=0.1"),
    *("--set", "fragment_images=3", "--set", "workers=2", "--set", "score.heatmaps=all"),
)
SCORED_AT = ("--set", "score.scored_at=2026-01-01T00:00:00Z")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of these takes longer than a default test may."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.slow)


@dataclass
class Faults:
    """What goes wrong next, in any process of a job: see `faults/sitecustomize.py`."""

    folder: Path
    seen: Path = field(init=False)

    def __post_init__(self) -> None:
        self.seen = self.folder / "seen"
        self.plan()

    def plan(self, **spec: object) -> None:
        """Replace what was planned; by default nothing goes wrong."""
        for name in ("seen", "counted"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        places = {"seen": str(self.seen), "counted": str(self.folder / "counted")}
        temporary = self.folder / "spec"
        temporary.write_text(json.dumps({**places, **spec}))
        temporary.replace(self.folder / "spec.json")

    def worker(self, stage: str, timeout_s: float = 300) -> int:
        """Wait for a process that is working in a stage; return its id."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for file in self.seen.glob(f"{stage}-*"):
                return int(file.name.rpartition("-")[2])
            time.sleep(0.005)
        raise AssertionError(f"nothing came to {stage}")


@pytest.fixture(scope="session")
def _fault_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="plf") as folder:
        yield Path(folder)


@pytest.fixture
def faults(_fault_folder: Path) -> Iterator[Faults]:
    planned = Faults(_fault_folder)
    yield planned
    planned.plan()


@dataclass
class Nodes:
    """A head without CPUs, and workers that can be killed and replaced."""

    cluster: Any
    folder: str
    workers: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def fill(self) -> None:
        """Have two workers, of three CPUs each: when one is lost, two infer actors and a spare."""
        # Memory is said, not measured: decode asks for 512 MiB, which a busy machine may not show.
        sizes = {"memory": 4 * 2**30, "object_store_memory": 100 * 2**20}
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(num_cpus=3, wait=True, **sizes))

    def kill_one(self) -> None:
        """SIGKILL a raylet; its workers follow it by themselves."""
        node = self.workers.pop()
        node.all_processes["raylet"][0].process.kill()
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def _nodes(_fault_folder: Path) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    # Workers have the environment of their raylet, not of the driver.
    before = dict(os.environ)
    os.environ.update(_environment(_fault_folder))
    folder = tempfile.mkdtemp(prefix="plc")
    # `Cluster` writes its address where Ray looks by default, and does not make that folder; the
    # host's own, if there is one, names a Ray that is not ours.
    os.environ["RAY_TMPDIR"] = folder
    Path(folder, "ray").mkdir()
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"temp_dir": folder})
    try:
        yield Nodes(cluster, folder)
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        # This process's own readers of footers have the environment that it had.
        apart.close()
        check_no_orphans(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(_nodes: Nodes) -> Iterator[Nodes]:
    """The cluster, whole; after the test it must be idle."""
    _nodes.fill()
    yield _nodes
    check_no_workers(_nodes.folder)


@dataclass
class Job:
    """A `patchlake` command that runs."""

    process: subprocess.Popen[str]
    # In the environment of the driver and of all that it starts.
    mark: str

    def end(self, timeout_s: float = 400) -> tuple[int, str]:
        """Wait; return the exit code and what it said."""
        _, said = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, said


Start = Callable[..., Job]


@pytest.fixture
def start(faults: Faults) -> Iterator[Start]:
    """Start a command as a process; after the test none of them has left another."""
    jobs: list[Job] = []

    def run(*arguments: object, environment: dict[str, str] | None = None, **options: Any) -> Job:
        # Unix sockets allow 107 characters: Ray's folder must be short.
        mark = f"/tmp/plr{uuid.uuid4().hex[:8]}"
        own = _environment(faults.folder) | {"RAY_TMPDIR": mark} | (environment or {})
        command = [sys.executable, "-m", "patchlake", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            env=os.environ | own,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        jobs.append(Job(process, mark))
        return jobs[-1]

    yield run
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
        job.process.communicate()
    for job in jobs:
        check_no_orphans(job.mark)
        shutil.rmtree(job.mark, ignore_errors=True)


def _environment(fault_folder: Path) -> dict[str, str]:
    return {
        "PATCHLAKE_CHAOS": str(fault_folder / "spec.json"),
        "PYTHONPATH": f"{Path(__file__).parent / 'faults'}:{ROOT / 'src'}",
        "RAY_AUTH_MODE": "disabled",
    }


def wait_for(path: Path, pattern: str, count: int, timeout_s: float = 300) -> None:
    """Wait until so many files are there."""
    deadline = time.monotonic() + timeout_s
    while len(list(path.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"{path} has no {count} files {pattern}"
        time.sleep(0.01)


PARTS = "version=*/**/*.parquet"


@pytest.fixture(scope="session")
def cut() -> Settings:
    return load_settings(flags=TINY | CUT)


@pytest.fixture(scope="session")
def oracle(
    images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, cut: Settings
) -> Path:
    """What an undisturbed run writes."""
    root = tmp_path_factory.mktemp("oracle")
    score.run(str(images), str(model), str(root), cut, LOCAL)
    return root
