"""What Ray holds in memory between calls: things in actors, and things in the nodes' stores.

What is lost with its process or node is made again from what made it at first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, cast

import ray

from pipeline.cluster import nodes
from pipeline.cluster.results import Reference, get, run, told
from pipeline.methods.workers import Held, M, M_co, Shared, T


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


def in_store(make: Callable[[], M], retries: int) -> Shared[M]:
    """Make a thing in a task, whose result stays in the store while it is referred to.

    What `ray.put` puts is lost with its node; the result of a task is made again.
    """
    task: Any = ray.remote(
        num_cpus=0, label_selector=nodes.not_an_idle_head(), max_retries=retries
    )(run)
    return _InStore(task.remote(make))


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

    def get(self) -> M_co:
        with told():
            return cast("M_co", ray.get(self.reference))
