"""The BLAS kernels of a process, on which the last bits of a product depend."""

import importlib


def kernels() -> list[str]:
    """Return the kernels that the BLAS libraries of this process run, as they name them."""
    # Imported here: a command may choose its kernel before whatever loads a BLAS.
    from threadpoolctl import threadpool_info

    # A worker may have loaded none yet.
    importlib.import_module("numpy")
    found = (info for info in threadpool_info() if info["user_api"] == "blas")
    return sorted({str(info.get("architecture")) for info in found})
