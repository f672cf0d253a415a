"""What Ray's tasks and actors return, waited for, and their faults, told like those raised here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from patchlake.pipeline.cluster.attempts import JobFault
from patchlake.pipeline.cluster.heap import trim
from patchlake.pipeline.errors import PatchlakeError, StorageError, WorkersLost
from patchlake.pipeline.methods.shared.workers import T

# Ray's own types for tasks and actors say less than `Any`: what a task returns is not in them.
Reference = Any


def get(reference: Reference) -> Any:  # noqa: ANN401 - as the reference says no more
    """Return what a task returns, or raise what a signal's handler does, meanwhile.

    `ray.get` waits in C++, where any exception but KeyboardInterrupt becomes a SystemError.
    """
    with told():
        return reference.future().result()


def run(call: Callable[[], T]) -> T:
    """Run a function as a task, which leaves no freed memory behind in its process."""
    try:
        return call()
    finally:
        trim()


@contextmanager
def told() -> Iterator[None]:
    """Tell a fault of the whole job, raised in a worker, like one raised here."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause.fault if isinstance(error.cause, JobFault) else error.cause
        is_told = isinstance(cause, PatchlakeError | StorageError)
        raise (cause if is_told else error) from None
    except _DEATHS as error:
        raise WorkersLost(
            f"a process of the job, or what it held, was lost once too often: {error}\n"
            "What is done stays done; the same command goes on from there"
        ) from error


_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
