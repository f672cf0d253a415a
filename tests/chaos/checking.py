"""What must hold after any fault: one checker for all chaos tests."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from patchlake.pipeline.driver import status
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import output_files, read_scores

# What a worker that lost its raylet, or its driver, may take to notice.
_GRACE_S = 120.0

# On the path of all processes of the chaos tests, and of no others.
_FAULTS = str(Path(__file__).parent / "faults").encode()
# What Python starts beside a process that spawned others, and ends with that process only, which
# may be that of the tests.
_TRACKER = "multiprocessing.resource_tracker"
# What a cluster of Ray 2.60 has of its own, and keeps when a driver has gone.
_OF_RAY = (
    "ray::IDLE",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::ActorLocationTracker",
    "ray::_AutoscalingCoordinatorActor",
    "ray::_StatsActor",
    "ray::_UsageCollectionActor",
)


def check_scores(scores: Path, images: Path, oracle: Path) -> None:
    """The table is, to the byte, what an undisturbed run writes, and says so."""
    check_what_is_there(scores, oracle)
    assert sorted(output_files(scores)) == sorted(output_files(oracle)), "parts or heatmaps lack"
    wanted = Counter(
        (str(file.relative_to(images)), row)
        for file in images.rglob("*.parquet")
        for row in range(pq.ParquetFile(file).metadata.num_rows)
    )
    rows = read_scores(scores).select(["source_path", "source_row"]).to_pylist()
    assert Counter((row["source_path"], row["source_row"]) for row in rows) == wanted
    [run] = status.read(str(scores))
    assert (run.state, run.done, run.failed, run.pending) == ("finished", run.fragments, 0, 0)
    assert run.images == run.images_done == len(rows)
    [path] = scores.glob("_runs/*/summary.json")
    summary = json.loads(path.read_text())
    parts = sorted(str(part.relative_to(scores)) for part in scores.glob("version=*/**/*.parquet"))
    assert sorted(summary["parts"]) == parts
    assert (summary["fragments"], summary["images"]) == (run.fragments, run.images)
    assert (summary["failed_fragments"], summary["removed_parts"]) == ({}, [])
    assert 0 <= summary["seconds"] < 600


def check_what_is_there(scores: Path, oracle: Path) -> None:
    """What a job that ended early has left: whole parts, their heatmaps, nothing else."""
    found, wanted = output_files(scores), output_files(oracle)
    for name, content in found.items():
        assert content == wanted.get(name), f"{name} is not what it should be"
    for row in (
        read_scores(scores).to_pylist() if list(scores.glob("version=*/**/*.parquet")) else ()
    ):
        if row["heatmap_path"] is not None:
            assert row["heatmap_path"].partition("#")[0] in found
    check_no_temporaries(scores)


def check_model(model: Path, oracle: Path) -> None:
    """The model is, to the byte, what an undisturbed fit writes; nothing else is left."""
    groups = read_manifest(Folder(str(model))).groups
    expected = read_manifest(Folder(str(oracle))).groups
    assert groups == expected
    for record in expected.values():
        for file in record.files:
            assert (model / file.name).read_bytes() == (oracle / file.name).read_bytes()
    [run] = status.read(str(model))
    assert (run.state, run.failed, run.pending) == ("finished", 0, 0)
    assert not list(model.glob("_runs/*/partials")), "partial results are left"
    check_no_temporaries(model)


def check_no_temporaries(folder: Path) -> None:
    assert not list(folder.rglob("*.tmp"))


def check_no_orphans(mark: str, grace_s: float = _GRACE_S) -> None:
    """No process that mentions `mark`, its own temporary folder, works on."""
    deadline = time.monotonic() + grace_s
    while left := _working(mark):
        assert time.monotonic() < deadline, f"orphan processes: {left}"
        time.sleep(0.2)


def check_no_workers(cluster: str) -> None:
    """A cluster that goes on has no worker that still works for a driver that has gone."""
    deadline = time.monotonic() + _GRACE_S
    while left := [
        t for t in _working(cluster).values() if t.startswith("ray::") and not t.startswith(_OF_RAY)
    ]:
        assert time.monotonic() < deadline, f"workers work on: {left}"
        time.sleep(0.2)


def _working(mark: str) -> dict[int, str]:
    """Return the processes that name `mark` in their command, environment or open files.

    And decoding processes whose parent has gone: they get nothing of its environment but its path.
    """
    found = {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            is_ours = mark in title or mark.encode() in environment
            is_ours = is_ours or any(
                mark in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
            )
            is_ours = is_ours or (
                "patchlake.pipeline.images.worker" in title
                and _FAULTS in environment
                and _is_orphan(pid)
            )
        except OSError:
            continue
        if is_ours and pid != os.getpid() and _TRACKER not in title and title:
            found[pid] = title.strip()
    return found


def _is_orphan(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "PPid:\t1\n" in status
