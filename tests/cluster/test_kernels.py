"""A run keeps which BLAS kernels it ran: bytes are equal for one choice of them."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder


def test_a_run_keeps_which_kernels_it_ran(scores: Path):
    (state,) = runs.read_runs(Folder(str(scores)))
    assert state.summary is not None
    asked = "from patchlake.pipeline.cluster.kernels import kernels; print(kernels())"
    env = os.environ | {"OPENBLAS_CORETYPE": "HASWELL"}
    other = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=env
    )
    kept = state.summary.libraries["blas"].split(", ")
    # Other libraries, with kernels of their own, may have been loaded since.
    assert kept
    assert set(kept) <= set(kernels())
    # Where there is OpenBLAS for x86: in numpy's wheels for Linux.
    if platform.machine() == "x86_64":
        assert "Haswell" in other.stdout
