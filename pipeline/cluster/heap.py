"""Memory that a worker has freed, given back to the machine.

A worker process does one fragment after the other. What it frees stays in the heaps of glibc and of
Arrow, in pieces, and its resident memory would grow with the number of fragments it has done.
"""

import ctypes
import sys
from functools import cache
from typing import Any

import pyarrow as pa


def trim() -> None:
    """Give it back; some milliseconds. Only glibc and Arrow are asked, elsewhere only Arrow."""
    pa.default_memory_pool().release_unused()
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


@cache
def _c_library() -> Any:  # noqa: ANN401 - functions of a C library have no types
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
