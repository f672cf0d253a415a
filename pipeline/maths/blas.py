"""BLAS on one thread."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

# It has a BLAS of its own beside numpy's: what is loaded later than `_libraries` is not found.
import scipy.linalg  # noqa: F401
from threadpoolctl import ThreadpoolController


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let products take one thread until the block ends.

    The last bits of a product can depend on how many there are, and where blocks are the parallel
    tasks, threads of a BLAS would only compete with them. The number is the whole process's: where
    blocks of several threads overlap, it comes back when the last of them ends.
    """
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()


class _Limit:
    """The number of threads from before the first of the blocks that are running."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks = 0
        self._before = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                self._before.enter_context(_libraries().limit(limits=1, user_api="blas"))
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._before.close()


_limit = _Limit()


@cache
def _libraries() -> ThreadpoolController:
    # Looking for them takes 7 ms, which an image would pay that is scored by Gaussians.
    return ThreadpoolController()
