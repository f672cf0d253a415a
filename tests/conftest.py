"""Shared fixtures: one lake and one model of tiny synthetic images, and one Ray, per session."""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from patchlake.jobs import cli, console
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, ingest, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.reading import apart
from patchlake.pipeline.score_table.parquet import PART_ORDER, write_sorted
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.tables import SCORES
from tests import s3_servers
from tests.fault_proxy import FaultProxy, fault_proxy

# `make test-soak` takes the other one.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _without_pytests_own() -> dict[str, str]:
    """Return the environment without what pytest changes at each step of each test.

    Else each test would start a process of its own that reads footers: a second or two.
    """
    return {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"}


apart.environment = _without_pytests_own

ASSETS = Path(__file__).resolve().parents[2] / "shared"
LOCAL = Execution("local", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs real weights and images where there are none.

    What only `make test-soak` runs is slow.
    """
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(pytest.mark.slow)
    if ASSETS.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real weights and images at {ASSETS}")
    for item in items:
        if "assets" in item.keywords:
            item.add_marker(skip)


def soak(*values: object) -> Any:
    """Return a variant of a test that CI has no time for: `make test-soak` runs it."""
    return pytest.param(*values, marks=pytest.mark.soak)


@dataclass(frozen=True)
class CommandResult:
    """What a command line printed and exited with."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., int]


@contextmanager
def command_line() -> Iterator[CommandLine]:
    """Yield what runs a command line in this process, as the `patchlake` script does.

    It returns the exit code. What the script sets for its process does not outlive the block.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["patchlake", *map(str, arguments)])
            try:
                cli.main()
            except SystemExit as exit_:
                return int(exit_.code or 0)
            return 0

    try:
        yield run
    finally:
        console.log.handlers.clear()
        console.log.propagate = True
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def patchlake(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process, as the `patchlake` script does."""
    with command_line() as run_line:

        def run(*arguments: object) -> CommandResult:
            capsys.readouterr()
            code = run_line(*arguments)
            captured = capsys.readouterr()
            return CommandResult(code, captured.out, captured.err)

        yield run


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a lake are read in this process, as Ray's workers do, where a test can watch."""
    monkeypatch.setattr("patchlake.pipeline.reading.apart._State.expendable", True)


# 64 px and a ten-layer network: a millisecond an image, and every code path of the real thing.
TINY = {
    "image": {"resize": [64, 64]},
    "backbone": {"name": "resnet10t.c3_in1k", "weights": "untrained"},
    "method": {"coreset_fraction": 0.1},
    "fragment_images": 10,
    # Pictures of all, since of the tiny ones hardly any is anomalous.
    "score": {"scored_at": "2026-01-01T00:00:00Z", "heatmaps": "all"},
}
TINY_FLAGS = (
    *("--set", "image.resize=[64, 64]", "--set", "backbone.name=resnet10t.c3_in1k"),
    *("--set", "backbone.weights=untrained", "--set", "method.coreset_fraction=0.1"),
    *("--set", "fragment_images=10", "--set", "score.scored_at=2026-01-01T00:00:00Z"),
    *("--set", "score.heatmaps=all"),
    *("--runner", "local"),
)


@pytest.fixture(scope="session")
def tiny() -> Settings:
    return load_settings(flags=TINY)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products in MVTec layout: 12 + 4 + 3 x 2 images each."""
    root = tmp_path_factory.mktemp("pictures")
    write_products(root, seed=1, train=12, good=4, defects=2)
    return root


@pytest.fixture(scope="session")
def images(pictures: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Settings) -> Path:
    """The same as a lake: 44 images, two groups."""
    root = tmp_path_factory.mktemp("images")
    ingest.run(str(pictures), str(root), Arrangement(), tiny, LOCAL)
    return root


@pytest.fixture(scope="session")
def model(images: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Settings) -> Path:
    root = tmp_path_factory.mktemp("model")
    fit.run(str(images), str(root), tiny, LOCAL)
    return root


@pytest.fixture(scope="session")
def scores(
    images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Settings
) -> Path:
    """The undisturbed result of the local runner."""
    root = tmp_path_factory.mktemp("scores")
    score.run(str(images), str(model), str(root), tiny, LOCAL)
    return root


# Else a worker that idles for a second is ended, and the next job starts one, which takes seconds.
KEPT_WORKERS = {"idle_worker_killing_time_threshold_ms": 600_000, "num_workers_soft_limit": 12}


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray of our own for the whole session."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    # Unix sockets allow 107 characters: pytest's own folders are too deep for Ray's.
    with tempfile.TemporaryDirectory(prefix="pl", ignore_cleanup_errors=True) as folder:
        ray.init(
            "local",
            num_cpus=3,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
            _system_config=KEPT_WORKERS,
        )
        yield
        ray.shutdown()


@pytest.fixture
def one_actor(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on `local_ray` has one infer actor: for tests that are not about how many there are.

    Each imports torch, timm and Ray Data, 11 s of a Zen 3's core, and no other job uses it.
    """
    monkeypatch.setattr("patchlake.pipeline.cluster.on_ray.scoring_processes", lambda _cpus: 1)


def output_files(scores: Path) -> dict[str, bytes]:
    """Everything a score table holds, but the record of its runs."""
    files = (path for path in scores.rglob("*") if path.is_file())
    found = {str(path.relative_to(scores)): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith("_runs")}


def read_scores(scores: Path) -> pa.Table:
    """All parts, as an analyst would read them."""
    files = sorted(scores.glob("version=*/**/*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def write_part(scores: Path, folder: str = "g=tile", **columns: Sequence[object]) -> Path:
    """Write a part as `score` does, of rows that are told; what is not told is as of a good image.

    Args:
        scores: The score table; its version is `abc`.
        folder: Hive keys below it; one part each.
        columns: Of SCORES, one at least.
    """
    rows = len(next(iter(columns.values())))
    told: dict[str, Sequence[object]] = {
        "image_id": [f"{folder}/{number}.png" for number in range(rows)],
        "source_path": [f"{folder}/images.parquet"] * rows,
        "source_row": range(rows),
        "group": ["tile"] * rows,
        "status": ["ok"] * rows,
        "image_score": [1.0] * rows,
        "anomaly_map": [[1.0]] * rows,
        "model_id": ["m"] * rows,
        "scored_at": [datetime(2026, 1, 1, tzinfo=UTC)] * rows,
    } | columns
    arrays = [pa.array(told.get(f.name, [None] * rows), f.type) for f in SCORES]
    digest = hashlib.sha256(folder.encode()).hexdigest()
    path = scores / "version=abc" / folder / f"part-{digest[:12]}-{digest[:20]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as sink:
        write_sorted(pa.Table.from_arrays(arrays, schema=SCORES), sink, PART_ORDER)
    return path


def by_place(scores: Path) -> dict[tuple[str, int], dict[str, object]]:
    """Rows of the score table by their identity."""
    rows = read_scores(scores).to_pylist()
    return {(row["source_path"], row["source_row"]): row for row in rows}


@pytest.fixture(scope="session")
def spark() -> Iterator[None]:
    """One Spark for the whole session, which `SparkSession.builder.getOrCreate()` finds."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java, and there is none")
    with tempfile.TemporaryDirectory(prefix="spark") as folder:
        session = (
            sql.SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.memory", "1g")
            .config("spark.local.dir", folder)
            .config("spark.sql.warehouse.dir", f"{folder}/warehouse")
            # Of so few rows each further one is a task for nothing.
            .config("spark.sql.shuffle.partitions", "2")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("ERROR")
        yield
        session.stop()


@pytest.fixture(scope="session")
def s3_environment(request: pytest.FixtureRequest) -> Path:
    """Where the S3 servers are installed: pytest's cache, so once in a checkout."""
    assert request.config.cache is not None
    try:
        return s3_servers.install(request.config.cache.mkdir("s3-servers"))
    except (RuntimeError, OSError) as error:
        pytest.skip(f"the S3 servers cannot be installed: {error}")


@pytest.fixture(scope="session")
def swift(
    s3_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[s3_servers.Server]:
    """A real S3 server."""
    with s3_servers.swift(s3_environment, tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(
    s3_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[s3_servers.Server]:
    """A mock of S3, for what Swift lacks."""
    with s3_servers.moto(s3_environment, tmp_path_factory.mktemp("moto")) as server:
        yield server


@dataclass(frozen=True)
class Store:
    """A bucket of Swift's behind a proxy, which this process's environment names."""

    server: s3_servers.Server
    proxy: FaultProxy
    bucket: str

    def uri(self, name: str = "") -> str:
        """Return the URI of a folder or file in the bucket."""
        return f"s3://{self.bucket}/{name}"

    def settings(self, **storage: object) -> Settings:
        """Return the tiny settings, by way of the proxy."""
        given = {"endpoint": self.proxy.endpoint, "region": "us-east-1", **storage}
        return load_settings(flags=TINY | {"storage": given})

    def put(self, name: str, content: bytes) -> None:
        """Put an object past our own code."""
        self.server.client().put_object(Bucket=self.bucket, Key=name, Body=content)

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Return every object below a folder, past our own code."""
        client, found = self.server.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{folder}/" if folder else ""
        ):
            for item in page.get("Contents", ()):
                body = client.get_object(Bucket=self.bucket, Key=item["Key"])["Body"]
                found[item["Key"].removeprefix(f"{folder}/")] = body.read()
        return found

    def output(self, folder: str) -> dict[str, bytes]:
        """Return what a score table holds, but the record of its runs."""
        found = self.files(folder).items()
        return {name: content for name, content in found if not name.startswith("_runs")}


@pytest.fixture
def store(swift: s3_servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket of its own for each test."""
    with fault_proxy(swift.endpoint) as proxy:
        for name, value in {**swift.environment, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            monkeypatch.setenv(name, value)
        bucket = f"lake-{uuid.uuid4().hex[:12]}"
        swift.client().create_bucket(Bucket=bucket)
        yield Store(swift, proxy, bucket)
