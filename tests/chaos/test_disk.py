"""A disk that fills: one message, whole parts only, nothing temporary; with room it goes on.

And one that may only be read: refused before any work, where it is to be written.
"""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from patchlake.pipeline.driver import status
from tests.chaos.checking import check_no_temporaries, check_scores, check_what_is_there
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT
from tests.conftest import output_files, soak

LOCALLY = ("--runner", "local")


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
    with mounted(folder, "size=400k"):
        yield Disk(folder, {}, lambda: remount(folder, "size=100m"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory over a folder."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a tmpfs; the limit on file sizes is tested")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change what a mounted folder allows."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


# Ray itself, a process of the job then, does not start under the limit.
@pytest.mark.parametrize(
    ("kind", "runner"), [("disk", "local"), soak("disk", "ray"), soak("limit", "local")]
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


def commands_into(folder: Path, pictures: Path, images: Path, scores: Path) -> dict[str, tuple]:
    """Return the commands that write a table or a model of their own."""
    return {
        "fit": ("fit", images, folder, *FLAGS, "--set", "method.coreset_fraction=1.0", *LOCALLY),
        "ingest": ("ingest", pictures, folder, *LOCALLY),
        "compact": ("compact", scores, folder),
    }


@pytest.mark.parametrize(
    ("verb", "size"), [soak("fit", "300k"), soak("ingest", "200k"), ("compact", "8k")]
)
def test_a_full_disk_of_another_verb(
    verb: str, size: str, pictures: Path, images: Path, scores: Path, tmp_path: Path, start
):
    """It says so, twice if it must; with room the same command ends as it does on an empty disk."""
    folders = [tmp_path / name for name in ("small", "large")]
    small, large = (commands_into(at, pictures, images, scores)[verb] for at in folders)
    with mounted(folders[0], f"size={size}") as folder:
        for _ in range(2):
            code, said = start(*small).end()
            assert (code, said.count("no space to write")) == (1, 1), said
            assert "Traceback" not in said
            check_no_temporaries(folder)
        remount(folder, "size=100m")
        for command in (small, large):
            code, said = start(*command).end()
            assert code == 0, said
        found, wanted = (contents(at) for at in folders)
        assert found == wanted


def contents(folder: Path) -> dict[str, bytes]:
    """Return what lies in a folder, but what tells when and where it was made."""
    records = ("_runs", "model.json", "_source.json", "_tables")
    return {n: c for n, c in output_files(folder).items() if not n.startswith(records)}


@pytest.mark.parametrize(
    "verb", [*map(soak, ("fit", "ingest", "compact", "update")), "score", "withdraw"]
)
def test_a_folder_that_may_only_be_read_is_not_written(
    verb: str,
    pictures: Path,
    images: Path,
    model: Path,
    scores: Path,
    tmp_path: Path,
    start,
):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        folder = disk
        if verb in ("update", "withdraw"):
            folder = Path(shutil.copytree(model, disk / "model"))
        commands = {
            **commands_into(folder, pictures, images, scores),
            "score": ("score", images, model, folder, *FLAGS, *LOCALLY),
            "update": ("fit", images, folder, "--update", *LOCALLY),
            "withdraw": ("withdraw", folder, "--image", "any", *LOCALLY),
        }
        remount(disk, "ro")
        code, said = start(*commands[verb]).end()
    [line] = [text for text in said.strip().splitlines() if "reading what there" not in text]
    assert code == 2
    assert str(folder) in line
    assert "read-only" in line


def test_what_is_only_read_may_be_read_only(
    images: Path, model: Path, oracle: Path, tmp_path: Path, start
):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        shutil.copytree(model, disk / "model")
        shutil.copytree(images, disk / "images")
        remount(disk, "ro")
        command = (disk / "images", disk / "model", tmp_path / "scores", *FLAGS, *SCORED_AT)
        code, said = start("score", *command, *LOCALLY).end()
    assert code == 0, said
    found, wanted = output_files(tmp_path / "scores"), output_files(oracle)
    # It says where the images are.
    assert found.pop("_source.json") != wanted.pop("_source.json")
    assert found == wanted
