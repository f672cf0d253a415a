"""Give memory that a worker has freed back to the machine.

A worker process does one fragment after the other. The memory that it frees stays in the heaps of
glibc and of Arrow, in pieces, so that its resident memory would grow with the number of fragments
that it has done.
"""

import ctypes
import sys
from functools import cache
from typing import Any

import pyarrow as pa


def trim() -> None:
    """Give freed memory of Arrow back, and with glibc that of its heap. Takes some milliseconds."""
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
