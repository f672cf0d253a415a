"""Wait for what Ray's tasks and actors return, and raise their errors as the worker raised them."""

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
    """Return what a task returns.

    A signal handler may raise an exception while this waits, and it is raised here. `ray.get` waits
    in C++, where any exception but KeyboardInterrupt becomes a SystemError.
    """
    with unwrapped_errors():
        return reference.future().result()


def run(call: Callable[[], T]) -> T:
    """Call a function in a task, and give the memory that it has freed back to the machine."""
    try:
        return call()
    finally:
        trim()


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise errors of ours, which Ray wraps in errors of its own, as they were in the worker.

    Raises:
        WorkersLost: where a process or a node died more often than Ray tries again.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause.fault if isinstance(error.cause, JobFault) else error.cause
        is_ours = isinstance(cause, PatchlakeError | StorageError)
        raise (cause if is_ours else error) from None
    except _DEATHS as error:
        raise WorkersLost(
            f"a process of the job, or data in its memory, was lost too often: {error}\n"
            "What is done stays done; the same command goes on from there"
        ) from error


_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
