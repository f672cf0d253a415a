"""The folder in which a command is started has names of its own, which are not ours to import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_FLAGS

PATCHLAKE = Path(sys.executable).with_name("patchlake")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what people have: packages and modules named like ours, Python's, and others'.

    A checkout of patchlake is one of them: a folder of its name that is no package.
    """
    packages = ("jobs", "pipeline", "stages", "lake", "tests")
    for name in (*(f"{name}/__init__" for name in packages), "tables", "queue", "numpy", "fit"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise RuntimeError('{name} of the user is imported')\n")
    (tmp_path / "patchlake" / "src").mkdir(parents=True)
    return tmp_path


def run(folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    return subprocess.run(
        [PATCHLAKE, *map(str, arguments)],
        check=False,
        cwd=folder,
        env={**environment, "RAY_AUTH_MODE": "disabled", **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "runner", ["local", pytest.param("ray", marks=(pytest.mark.ray, pytest.mark.slow))]
)
def test_what_lies_there_is_not_imported(folder: Path, images: Path, model: Path, runner: str):
    flags = (*TINY_FLAGS, "--runner", runner)
    done = run(folder, "score", images, model, "scores", *flags)
    assert done.returncode == 0, done.stderr
    assert "of the user" not in done.stderr


def test_nor_where_it_is_on_the_path(folder: Path, model: Path):
    """`PYTHONPATH=.` asks for what is there, but of our names there is one."""
    for name in ("queue", "numpy"):
        (folder / f"{name}.py").unlink()
    done = run(folder, "status", model, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
