"""BLAS on one thread."""

from contextlib import AbstractContextManager
from functools import cache

# It has a BLAS of its own beside numpy's: what is loaded later than `_libraries` is not found.
import scipy.linalg  # noqa: F401
from threadpoolctl import ThreadpoolController


def on_one_thread() -> AbstractContextManager[object]:
    """Return a context in which products take one thread.

    The last bits of a product can depend on how many there are, and where blocks are the parallel
    tasks, threads of a BLAS would only compete with them.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    # Looking for them takes 7 ms, which an image would pay that is scored by Gaussians.
    return ThreadpoolController()
