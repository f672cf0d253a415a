"""The kernel is chosen where every core is an AMD one with AVX-512, and nowhere else."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from patchlake.jobs.blas import choose_kernel
from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.driver.execution import Execution

AVX512 = "avx512f avx512dq avx512bw avx512vl avx512cd"


def cpuinfo(folder: Path, *cores: tuple[str, str]) -> Path:
    text = "\n\n".join(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}" for vendor, flags in cores)
    (folder / "cpuinfo").write_text(text)
    return folder / "cpuinfo"


@pytest.mark.parametrize(
    ("cores", "chosen"),
    [
        ([("AuthenticAMD", AVX512)], "SKYLAKEX"),
        ([("AuthenticAMD", AVX512), ("AuthenticAMD", "avx2")], None),
        ([("AuthenticAMD", "avx2 avx512f")], None),
        ([("GenuineIntel", AVX512)], None),
        ([], None),
    ],
)
def test_the_choice_follows_vendor_and_flags(
    cores: list[tuple[str, str]],
    chosen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    # Of a variable that was not there, `delenv` alone would restore nothing; and a kernel that this
    # processor does not have ends every process that begins later.
    monkeypatch.setenv("OPENBLAS_CORETYPE", "any")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert choose_kernel(cpuinfo(tmp_path, *cores)) == chosen
    assert os.environ.get("OPENBLAS_CORETYPE") == chosen


def test_an_explicit_setting_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "HASWELL")
    assert choose_kernel(cpuinfo(tmp_path, ("AuthenticAMD", AVX512))) == "HASWELL"


def test_no_cpuinfo_means_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert choose_kernel(tmp_path / "absent") is None


def test_a_job_says_which_kernels_it_runs(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="patchlake"), Execution("local", None).start(None):
        pass
    # By the logger that a command shows.
    (line,) = [
        record.getMessage() for record in caplog.records if record.name.startswith("patchlake.")
    ]
    asked = "import numpy; from patchlake.pipeline.cluster.kernels import kernels; print(kernels())"
    env = os.environ | {"OPENBLAS_CORETYPE": "HASWELL"}
    other = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=env
    )
    assert line == f"BLAS kernels here: {', '.join(kernels())}"
    # Where there is OpenBLAS for x86: in numpy's wheels for Linux.
    if platform.machine() == "x86_64":
        assert "Haswell" in other.stdout


def test_a_shell_is_told_what_to_export():
    script = "from patchlake.pipeline.cluster.kernels import kernels; print(kernels())"
    kernels_ = f'python -c "{script}"'
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for asked in ("HASWELL", "SKYLAKEX"):
        said, ran = (
            subprocess.run(
                ["bash", "-ec", script],
                capture_output=True,
                text=True,
                check=True,
                env=env | {"OPENBLAS_CORETYPE": asked},
            ).stdout
            for script in (
                "python -m patchlake.jobs.blas",
                f'eval "$(python -m patchlake.jobs.blas)"; {kernels_}',
            )
        )
        assert said == f"export OPENBLAS_CORETYPE={asked}\n"
        if platform.machine() == "x86_64":
            assert asked in ran.upper()


def test_the_command_chooses_before_numpy_is_imported():
    code = """
import sys
import patchlake.jobs.__main__ as command
import patchlake.jobs.blas

def choose():
    print("numpy" in sys.modules)

patchlake.jobs.blas.choose_kernel = choose
sys.argv = ["patchlake", "--help"]
command.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "False"
    assert "Usage" in done.stdout
