"""A disk that fills: one message, whole parts only, nothing temporary; with room it goes on."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import status
from tests.chaos.checking import check_scores, check_what_is_there
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT


@dataclass
class Disk:
    """Where scores go, and how that is made small and large again."""

    folder: Path
    # Of `subprocess.Popen`, while it is small.
    options: dict[str, Any]
    enlarge: Callable[[], object]


@pytest.fixture
def disk(kind: str, tmp_path: Path) -> Iterator[Disk]:
    """`disk`: a tmpfs of 400 KiB, ENOSPC; `limit`: RLIMIT_FSIZE of 6 KiB a file, EFBIG."""
    folder = tmp_path / "scores"
    folder.mkdir()
    if kind == "limit":
        limits = (6 * 2**10, resource.RLIM_INFINITY)
        limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)}
        yield Disk(folder, limited, lambda: None)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a tmpfs; the limit on file sizes is tested")
    try:
        grown = ["mount", "-o", "remount,size=100m", str(folder)]
        yield Disk(folder, {}, lambda: subprocess.run(grown, check=True))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# Ray itself, a process of the job then, does not start under the limit.
@pytest.mark.parametrize(
    ("kind", "runner"), [("disk", "local"), ("disk", "ray"), ("limit", "local")]
)
def test_a_full_disk(
    disk: Disk, kind: str, runner: str, images: Path, model: Path, oracle: Path, start
):
    scores = disk.folder
    command = ("score", images, model, scores, *FLAGS, *SCORED_AT, "--runner", runner)
    code, said = start(*command, **disk.options).end()
    assert code == 1, said
    assert "no space to write" in said
    assert "Traceback" not in said
    assert len(list(scores.glob(PARTS))) < len(list(oracle.glob(PARTS)))
    check_what_is_there(scores, oracle)
    for run in status.read(str(scores)):
        # Whether there was room for the last word is chance.
        assert run.state in ("stopped", "dead")
    disk.enlarge()
    code, said = start(*command).end()
    assert code == 0, said
    check_scores(scores, images, oracle)
