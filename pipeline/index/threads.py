"""Blocks of work in parallel threads of ours, in each of which faiss and torch use one thread.

faiss and torch would otherwise start threads of their own for each block, and those of blocks that
run at the same time would compete for the processor's cores. For the same reason, a block that has
blocks in itself does them one after the other: where images are scored side by side, each is
searched for on the thread that it has.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import local
from typing import TypeVar

import faiss
import torch

_Block = TypeVar("_Block")
_Result = TypeVar("_Result")


# Set in the threads of ours: each has its block already.
_ours = local()


class BlockThreads:
    """Calls a function with each of several blocks, with `count` blocks at a time."""

    def __init__(self, threads: int) -> None:
        # A single thread is the caller's own. Another one would wake on another core, which may
        # have slept and whose caches hold nothing of the search: to search for an image in 10,000
        # rows took 14 to 17 ms there, and takes 13 ms in the caller's thread.
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=_become_ours) if threads > 1 else None

    @property
    def count(self) -> int:
        """Blocks that run at a time when this thread asks for them."""
        return 1 if hasattr(_ours, "block") else self._threads

    def map(self, function: Callable[[_Block], _Result], blocks: Iterable[_Block]) -> list[_Result]:
        """Return the function's results in the order of the blocks.

        Where it raises an error for one block, no other block is begun, and the error is raised
        when those that run have ended.
        """
        if self._pool is not None and self.count > 1:
            futures = [self._pool.submit(function, block) for block in blocks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # After an error or a signal, wait for the blocks that are running: they may write
                # to memory that the caller uses for something else once the error has reached it.
                wait([future for future in futures if not future.cancel()])
            return [future.result() for future in futures]
        with _one_thread():
            return [function(block) for block in blocks]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let faiss and torch use one thread until the block ends."""
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    _use_one_thread()
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


def _become_ours() -> None:
    _use_one_thread()
    _ours.block = True


def _use_one_thread() -> None:
    """Let faiss and torch use one thread when this thread calls them.

    torch's number is also taken over by threads that use torch for the first time after this.
    """
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
