"""fit and score as jobs of a real cluster: a head without CPUs, a CPU node and a GPU node.

Its processes are those of `ray start`, with token authentication, in folders and at ports of their
own. The scripts are those of docs/operator.md.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from patchlake.pipeline.driver import status
from patchlake.pipeline.model_store import models
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import TINY, output_files

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
GUIDE = (ROOT / "docs/operator.md").read_text()
SCRIPTS = dict(re.findall(r"```sh\n# (\w+): [^\n]*\n(.*?)```", GUIDE, re.DOTALL))

# Of one command, and of nodes that start: a minute where nothing else runs.
WAIT_S = 400


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@dataclass
class RealCluster:
    """`ray start` processes of one cluster, and a client of it."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        # PYTHONPATH, if any, must not stand in for the working directory of a job.
        inherited = {k: v for k, v in os.environ.items() if not re.match("RAY_|PYTHONPATH", k)}
        return {
            **inherited,
            "HOME": str(self.folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }

    def start(self, name: str, *options: str, **variables: str) -> None:
        command = [
            *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--node-name={name}"),
            *(f"--temp-dir={self.folder / name}", f"--object-store-memory={150 * 2**20}"),
            *(f"--dashboard-agent-listen-port={free_port()}", *options),
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**self.environment, **variables}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)

    def start_head(self, **variables: str) -> None:
        self.client("ray", "get-auth-token", "--generate", check=True)
        self.start(
            "head",
            *("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}"),
            *("--num-cpus=0", f"--ray-client-server-port={free_port()}"),
            **variables,
        )
        self.until(lambda: self.client("ray", "job", "list").returncode == 0)

    def start_workers(self, **variables: str) -> None:
        join = f"--address=127.0.0.1:{self.port}"
        self.start("cpu", join, "--num-cpus=2", "--resources", '{"decode": 2}', **variables)
        self.start("gpu", join, "--num-cpus=2", "--num-gpus=1", **variables)
        self.until(lambda: self.client("ray", "status").stdout.count("node_") >= 3)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            dead = [process.args for process in self.processes if process.poll() is not None]
            assert not dead
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def client(
        self, *command: str, check: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            # The client's own `patchlake` is this checkout's; a job gets nothing of it.
            env={
                **self.environment,
                "RAY_ADDRESS": f"127.0.0.1:{self.port}",
                "PYTHONPATH": str(ROOT / "src"),
                **variables,
            },
            check=check,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )

    def stop(self) -> None:
        """End the processes that were started here, and theirs, by their ids."""
        started = [
            psutil.Process(process.pid) for process in self.processes if process.poll() is None
        ]
        family = [child for one in started for child in one.children(recursive=True)]
        for one in started:
            one.terminate()
        # Raylets end themselves and most of their children; the others have nothing to finish.
        psutil.wait_procs(started, timeout=30)
        _, left = psutil.wait_procs([*started, *family], timeout=2)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self.processes:
            process.wait(timeout=30)


@contextlib.contextmanager
def real_cluster() -> Iterator[RealCluster]:
    # Unix sockets allow 107 characters: pytest's own folders are too deep for Ray's.
    with tempfile.TemporaryDirectory(prefix="pl", ignore_cleanup_errors=True) as folder:
        started = RealCluster(Path(folder))
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with real_cluster() as started:
        started.start_head()
        # Not this process's kernel, by which no result may differ.
        started.start_workers(OPENBLAS_CORETYPE="HASWELL")
        yield started


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is submitted: the code, and the night's settings."""
    root = tmp_path_factory.mktemp("checkout")
    for package in ("jobs", "pipeline", "src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, symlinks=True, ignore=ignored)
    (root / "night.yaml").write_text(yaml.safe_dump(TINY))
    return root


@pytest.fixture(scope="module")
def nightly(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake of the other tests, as the archive of one night."""
    root = tmp_path_factory.mktemp("nightly")
    shutil.copytree(images, root / "dt=2026-11-22")
    return root


@dataclass(frozen=True)
class Night:
    """The scripts of the guide, with their variables."""

    cluster: RealCluster
    checkout: Path
    images: Path
    model: Path
    scores: Path

    def run(self, script: str, *, name: str = "2026-11-22") -> subprocess.CompletedProcess[str]:
        return self.cluster.client(
            *("bash", "-euo", "pipefail", "-c", f"cd {self.checkout}\n{SCRIPTS[script]}"),
            IMAGES=str(self.images),
            MODEL=str(self.model),
            SCORES=str(self.scores),
            NIGHT=name,
        )


def summary(folder: Path) -> runs.Summary:
    (state,) = runs.read_runs(Folder(str(folder)))
    assert state.summary is not None
    return state.summary


def test_a_submitted_fit_is_the_fit_of_one_process(
    cluster: RealCluster, checkout: Path, images: Path, model: Path, tmp_path: Path
):
    submitted = cluster.client(
        *("ray", "job", "submit", "--submission-id", "fit-2026-W48"),
        *(
            "--working-dir",
            str(checkout),
            "--runtime-env-json",
            '{"env_vars": {"PYTHONPATH": "src"}}',
        ),
        *("--", "python", "-m", "patchlake", "fit", str(images), str(tmp_path)),
        *("--config", "night.yaml"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    digests = [
        {group: record.digest for group, record in models.read_manifest(one).groups.items()}
        for one in (Folder(str(tmp_path)), Folder(str(model)))
    ]
    assert digests[0] == digests[1]
    ran = summary(tmp_path)
    assert ran.exit_code == 0
    assert ran.nodes == {"decode": {"cpu": 6}, "embed": {"gpu": 6}}


def test_a_night_is_scored_once_where_its_stages_belong(
    cluster: RealCluster, checkout: Path, nightly: Path, model: Path, tmp_path: Path
):
    night = Night(cluster, checkout, nightly, model, tmp_path)
    assert night.run("outcome").returncode != 0
    first = night.run("start")
    assert first.returncode == 0, first.stdout + first.stderr
    assert night.run("outcome").stdout == "0\n"
    ran = summary(tmp_path)
    assert ran.nodes["decode"] == {"cpu": 6}
    assert ran.nodes["infer"] == {"gpu": 6}
    assert set(ran.nodes["publish"]) <= {"cpu", "gpu"}
    assert sum(ran.nodes["publish"].values()) == 6
    # A scheduler that starts it twice.
    second = night.run("start")
    assert second.returncode != 0
    assert "already exists" in second.stdout + second.stderr
    assert summary(tmp_path) == ran
    written = output_files(tmp_path)
    # And once more, on purpose: nothing is left to do.
    assert night.run("again").returncode == 0
    assert night.run("start").returncode == 0
    assert summary(tmp_path).already_done == 6
    assert output_files(tmp_path) == written


def test_what_ray_flattens_the_summary_tells(
    cluster: RealCluster, checkout: Path, model: Path, tmp_path: Path
):
    lake = tmp_path / "images/dt=2026-11-23"
    lake.mkdir(parents=True)
    rows = {"image_id": ["a"], "image": [b"no image"], "group": ["woven_cloth"]}
    pq.write_table(pa.table(rows), lake / "a.parquet")
    night = Night(cluster, checkout, tmp_path / "images", model, tmp_path / "scores")
    assert night.run("start", name="2026-11-23").returncode == 1
    outcome = night.run("outcome", name="2026-11-23")
    assert (outcome.returncode, outcome.stdout) == (3, "3\n")
    # Of another night there is nothing to tell.
    assert night.run("outcome", name="2026-11-24").returncode == 4
    (run,) = status.read(str(tmp_path / "scores"))
    assert (run.state, run.exit_code, run.where) == ("finished", 3, "dt == '2026-11-23'")


def test_without_the_token_nobody_submits(cluster: RealCluster):
    refused = cluster.client("ray", "job", "list", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert re.search("401|[Uu]nauthenticated|token", refused.stdout + refused.stderr)


@pytest.mark.soak
def test_a_job_waits_for_the_nodes_that_ray_up_may_start(
    checkout: Path, nightly: Path, model: Path, tmp_path: Path
):
    """A sleeping cluster is a head; its workers come when the job is there already."""
    with real_cluster() as sleeping:
        shutil.copy(ROOT / "cluster.yaml", sleeping.folder / "ray_bootstrap_config.yaml")
        sleeping.start_head(RAY_NODE_TYPE_NAME="head")
        night = Night(sleeping, checkout, nightly, model, tmp_path)
        submit = SCRIPTS["start"].replace("ray job submit", "ray job submit --no-wait")
        (checkout / "submit.sh").write_text(submit)
        variables = {"IMAGES": nightly, "MODEL": model, "SCORES": tmp_path, "NIGHT": "2026-11-22"}
        started = sleeping.client(
            *("bash", "-c", f"cd {checkout}; . ./submit.sh"),
            **{name: str(value) for name, value in variables.items()},
        )
        assert started.returncode == 0, started.stderr
        sleeping.until(lambda: list(tmp_path.glob("_runs/*/plan.arrow")))
        time.sleep(5)
        sleeping.start_workers()
        sleeping.until(lambda: night.run("outcome").returncode == 0)
    ran = summary(tmp_path)
    assert (ran.nodes["decode"], ran.nodes["infer"]) == ({"cpu": 6}, {"gpu": 6})
    assert json.loads((tmp_path / "_runs" / ran.run / "summary.json").read_text())["nodes"]
