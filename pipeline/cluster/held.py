"""What Ray holds in memory between calls: things in actors, and things in the nodes' stores.

What is lost with its process or node is made again from what made it at first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, cast

import ray

from patchlake.pipeline.cluster import nodes
from patchlake.pipeline.cluster.results import Reference, get, run
from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.methods.shared.workers import Held, M, M_co, Shared, T


@contextmanager
def members(starts: Sequence[Callable[[], M]], retries: int) -> Iterator[Held[M]]:
    """Start an actor each. They hold memory and answer in turns, so they ask for no CPU.

    An actor that dies is started again, on another node if need be, and asked again.
    """
    kind: Any = ray.remote(
        num_cpus=0,
        scheduling_strategy="SPREAD",
        label_selector=nodes.not_an_idle_head(),
        max_restarts=retries,
        max_task_retries=retries,
    )(_Member)
    actors = [kind.remote(start) for start in starts]
    try:
        yield _Elsewhere(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


class Store:
    """Things in the nodes' object stores, made by tasks one after the other, as they are asked for.

    What `ray.put` puts is lost with its node; the result of a task is made again. A task holds a
    thing once more while it copies it into the store, so there is one at a time.
    """

    def __init__(self, bytes_: int, retries: int) -> None:
        self.bytes = bytes_
        self._task: Any = ray.remote(
            num_cpus=0,
            num_returns=2,
            scheduling_strategy="SPREAD",
            label_selector=nodes.not_an_idle_head(),
            max_retries=retries,
        )(_made)
        self._before: Reference = None

    def share(self, make: Callable[[], M]) -> Shared[M]:
        """Make a thing; it stays while the result is kept."""
        thing, self._before = self._task.remote(make, self._before)
        return _InStore(thing)


def _made(make: Callable[[], M], _before: None) -> tuple[M | None, None]:
    """Make a thing once what was before it is made: a task waits for what it is given."""
    try:
        return run(make), None
    except (PatchlakeError, OSError):
        # Who then makes it alone tries again, and tells what is wrong.
        return None, None


class _Member(Generic[M]):
    """An actor that holds a thing and answers questions about it."""

    def __init__(self, start: Callable[[], M]) -> None:
        self._thing = start()

    def answer(self, question: Callable[[M], T]) -> T:
        return question(self._thing)


@dataclass(frozen=True)
class _Elsewhere(Generic[M]):
    actors: Sequence[Any]

    def ask(self, question: Callable[[M], T]) -> Sequence[T]:
        # Put once: the question carries arrays, and every actor gets the same one.
        shared = ray.put(question)
        asked = [actor.answer.remote(shared) for actor in self.actors]
        return [get(answer) for answer in asked]


@dataclass(frozen=True)
class _InStore(Generic[M_co]):
    reference: Reference

    def get(self) -> M_co | None:
        try:
            return cast("M_co | None", ray.get(self.reference))
        except ray.exceptions.RayError:
            return None
