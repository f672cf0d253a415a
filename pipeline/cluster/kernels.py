"""The BLAS kernels that a process runs: results are equal to the byte for one choice of them.

OpenBLAS chooses by the processor, and OPENBLAS_CORETYPE overrides it. A run's summary keeps the
driver's, and a job on Ray warns where its nodes do not run the same.
"""

import importlib

from threadpoolctl import threadpool_info


def kernels() -> list[str]:
    """Return the kernels that the BLAS libraries of this process run, as they name them."""
    # A worker may have loaded none yet.
    importlib.import_module("numpy")
    found = (info for info in threadpool_info() if info["user_api"] == "blas")
    return sorted({str(info.get("architecture")) for info in found})
