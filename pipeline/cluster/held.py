"""Things that stay in the memory of a Ray cluster between calls: in actors, or in object stores.

Each is made by a function. If its process or node is lost, Ray calls the function again elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, cast

import ray

from patchlake.pipeline.cluster import nodes
from patchlake.pipeline.cluster.results import Reference, get, run
from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.methods.shared.workers import Held, M, M_co, SharedArrays, T


@contextmanager
def members(starts: Sequence[Callable[[], M]], retries: int) -> Iterator[Held[M]]:
    """Start an actor for each function; an actor holds what its function returns.

    They hold memory and answer in turns, so they ask Ray for no CPU. An actor that dies is started
    again, on another node if need be, and asked again, at most `retries` times.
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
        yield _HeldByActors(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


class NodeStores:
    """Puts things into the object stores of the nodes, where a node's workers read them in place.

    Each thing is the result of a task, because Ray makes a lost result again by running the task;
    what `ray.put` puts would be lost with its node. A task holds its thing a second time while it
    copies it into the store. So the tasks run one after the other.
    """

    def __init__(self, bytes_: int, retries: int) -> None:
        self.bytes = bytes_
        self._task: Any = ray.remote(
            num_cpus=0,
            num_returns=2,
            scheduling_strategy="SPREAD",
            label_selector=nodes.not_an_idle_head(),
            max_retries=retries,
        )(_make)
        # What the task before the next one returns when it has ended.
        self._before: Reference = None

    def share(self, make: Callable[[], M]) -> SharedArrays[M]:
        """Have a function called in a task. What it returns stays while this result is kept."""
        thing, self._before = self._task.remote(make, self._before)
        return _SharedInStore(thing)


def _make(make: Callable[[], M], _before: None) -> tuple[M | None, None]:
    """Call the function, in a task that Ray begins once the one before it has ended.

    That is because the second result of the task before is an argument of this one.
    """
    try:
        return run(make), None
    except (PatchlakeError, OSError):
        # A worker that finds nothing here makes the thing for itself, and reports what is wrong.
        return None, None


class _Member(Generic[M]):
    """The actor: it holds a thing, and answers questions about it."""

    def __init__(self, start: Callable[[], M]) -> None:
        self._thing = start()

    def answer(self, question: Callable[[M], T]) -> T:
        return question(self._thing)


@dataclass(frozen=True)
class _HeldByActors(Generic[M]):
    """See `Held`."""

    actors: Sequence[Any]

    def ask(self, question: Callable[[M], T]) -> Sequence[T]:
        # Put into the store once, as every actor gets the same question, which may carry arrays.
        shared = ray.put(question)
        answers = [actor.answer.remote(shared) for actor in self.actors]
        return [get(answer) for answer in answers]


@dataclass(frozen=True)
class _SharedInStore(Generic[M_co]):
    """See `SharedArrays`."""

    reference: Reference

    def get(self) -> M_co | None:
        try:
            return cast("M_co | None", ray.get(self.reference))
        except ray.exceptions.RayError:
            return None
