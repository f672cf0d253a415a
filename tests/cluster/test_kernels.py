"""A job says which BLAS kernels it runs: bytes are equal for one choice of them."""

import os
import platform
import subprocess
import sys

import pytest

from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.driver.execution import Execution


def test_a_job_says_which_kernels_it_runs(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("DEBUG", logger="patchlake"), Execution("local", None).start(None):
        pass
    (line,) = [record.getMessage() for record in caplog.records]
    asked = "from patchlake.pipeline.cluster.kernels import kernels; print(kernels())"
    env = os.environ | {"OPENBLAS_CORETYPE": "HASWELL"}
    other = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=env
    )
    assert line == f"BLAS kernels here: {', '.join(kernels())}"
    # Where there is OpenBLAS for x86: in numpy's wheels for Linux.
    if platform.machine() == "x86_64":
        assert "Haswell" in other.stdout
