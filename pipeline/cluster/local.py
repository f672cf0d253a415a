"""`--runner local`: all stages run in this process, one fragment after the other.

While a fragment is in the network, the next one is decoded and the one before it is written, in a
thread each.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from typing import Generic

import numpy as np
import pyarrow as pa

from patchlake.pipeline.cluster.runner import Pipeline, Stage
from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T


@dataclass(frozen=True)
class LocalRunner:
    """Runs everything in this process. `threads`: None is one for each core."""

    processes: int = 1
    threads: int | None = None

    def run(self, plan: pa.Table, pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield the last stage's row for each row of the plan, in order."""
        publish = pipeline.publish or _unchanged
        # Stages have threads of their own. Products of numpy's BLAS in several of them, each on all
        # cores, compete: to bring one map to the size of its picture took 25 ms of processor time.
        with on_one_thread(), ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
            rows = (plan.slice(number, 1) for number in range(len(plan)))
            decoded = _submit(ahead, pipeline.decode, islice(rows, 1))
            # Meanwhile: other processes decode.
            infer = pipeline.infer.start(self._threads)
            published: list[Future[pa.Table]] = []
            while decoded:
                pixels = decoded[0].result()
                decoded = _submit(ahead, pipeline.decode, islice(rows, 1))
                done = infer(pixels)
                yield from (future.result() for future in published)
                published = _submit(behind, publish, [done])
            yield from (future.result() for future in published)

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield one stage's row for each row, in order."""
        return map(stage, rows)

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield the result of each call."""
        return (call() for call in calls)

    def everywhere(self, call: Callable[[], T]) -> Mapping[str, T]:  # noqa: ARG002 - `Runner`
        """Return an empty mapping: there is no other process."""
        return {}

    @contextmanager
    def members(self, starts: Sequence[Callable[[], M]]) -> Iterator[Held[M]]:
        """Call all the functions here, and hold what they return."""
        yield _HeldHere([start() for start in starts])

    def sharing(self) -> None:
        """Return None: this process is the only one."""

    def together(self, call: Callable[[Peers], None], members: int) -> None:  # noqa: ARG002 - `Runner`
        """Run the function once."""
        call(_OnlyPeer(self._threads))

    @property
    def _threads(self) -> int:
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True)
class _OnlyPeer:
    """See `Peers`."""

    threads: int
    number: int = 0
    count: int = 1

    def gather(self, array: np.ndarray) -> Sequence[np.ndarray]:
        return [array]


@dataclass(frozen=True)
class _HeldHere(Generic[M]):
    """See `Held`."""

    things: Sequence[M]

    def ask(self, question: Callable[[M], T]) -> Sequence[T]:
        return [question(thing) for thing in self.things]


def _submit(
    pool: ThreadPoolExecutor, stage: Stage, rows: Iterable[pa.Table]
) -> list[Future[pa.Table]]:
    # In this thread's context: the stages tell its listener how far they are (`headway`).
    return [pool.submit(copy_context().run, stage, row) for row in rows]


def _unchanged(table: pa.Table) -> pa.Table:
    return table
