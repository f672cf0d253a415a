"""Rows that kill their workers: counted, so that none is tried for ever.

Ray tries again without end what died with its process, because most deaths are of nodes and none
of the row's doing. So each worker says which row it begins and which it has finished, to an actor
beside the driver, and a row that was begun so often and never finished is not begun again.
"""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.exceptions import UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from patchlake.pipeline.cluster.runner import Poison, Stage
from patchlake.pipeline.errors import PatchlakeError, StorageError, WorkersLost
from patchlake.pipeline.reading.apart import expendable

# Deaths of an actor while it starts, one after the other. Rows have a setting, starts do not.
_STARTS = 3


class _Register:
    """What was begun, and by whom, and is not finished."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], list[str]] = {}

    def begin(self, stage: str, key: str, worker: str, limit: int) -> list[str] | None:
        """Return None if it may be begun, else the workers that have died over it."""
        begun = self._begun.setdefault((stage, key), [])
        if len(begun) >= limit:
            return begun
        begun.append(worker)
        return None

    def end(self, stage: str, key: str) -> None:
        self._begun.pop((stage, key), None)


@dataclass(frozen=True)
class Attempts:
    """Travels to the workers with each stage."""

    register: Any

    @classmethod
    def counted(cls) -> "Attempts":
        """Start the actor that counts, on the driver's own node: it must not die before it."""
        here = ray.get_runtime_context().get_node_id()
        kind: Any = ray.remote(_Register)
        placed = NodeAffinitySchedulingStrategy(here, soft=True)
        # One that is started again has forgotten what it counted, which is better than no job.
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return cls(kind.options(scheduling_strategy=placed, **options).remote())

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Let an actor start. Raises `WorkersLost` if it has died over that too often."""
        actor = str(ray.get_runtime_context().get_actor_id())
        dead = self._begin("start", actor, _STARTS)
        if dead:
            raise WorkersLost(f"a worker died {len(dead)} times while it started ({_told(dead)})")
        with self._ending("start", actor):
            yield

    @contextmanager
    def trying(self, stage: str, key: str, limit: int) -> Iterator[str | None]:
        """Let a stage work on a row, or say why it is to be given up."""
        dead = self._begin(stage, key, limit)
        if dead:
            yield f"{stage}: its worker died {len(dead)} times over it ({_told(dead)})"
            return
        with self._ending(stage, key):
            yield None

    @contextmanager
    def _ending(self, name: str, key: str) -> Iterator[None]:
        # An error is no death either.
        try:
            yield
        finally:
            self.register.end.remote(name, key)

    def _begin(self, stage: str, key: str, limit: int) -> list[str] | None:
        worker = f"process {os.getpid()} on {socket.gethostname()}"
        begun: list[str] | None = ray.get(self.register.begin.remote(stage, key, worker, limit))
        return begun


class JobFault(UserCodeException):
    """A fault of the whole job on its way through Ray Data.

    It wraps any other exception and loses what that was; or, asked to raise the original one, adds
    advice on Ray's settings to its first argument, and logs a traceback.
    """

    @property
    def fault(self) -> PatchlakeError | StorageError:
        """What the stage raised."""
        return cast("PatchlakeError | StorageError", self.args[1])


@dataclass(frozen=True)
class Guarded:
    """A stage that is not tried for ever on a row that kills its worker."""

    name: str
    stage: Stage
    attempts: Attempts
    poison: Poison | None
    # Whether the stage makes the pipeline's result, also of a row that was given up.
    is_last: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the stage's row, or one that says why it was given up."""
        # Its death is counted here, and costs this process alone.
        expendable()
        try:
            return self._guarded(table)
        except (PatchlakeError, StorageError) as error:
            raise JobFault(str(error), error) from error

    def _guarded(self, table: pa.Table) -> pa.Table:
        if self.poison is None:
            return self.stage(table)
        key = self.poison.key_of(table)
        with self.attempts.trying(self.name, key, self.poison.attempts) as reason:
            if reason is None:
                return self.stage(table)
            given_up = self.poison.given_up(table, reason)
            return self.stage(given_up) if self.is_last else given_up


def _content_of(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _lost(table: pa.Table, reason: str) -> pa.Table:  # noqa: ARG001 - as `Poison.given_up`
    raise WorkersLost(reason)


# Of rows that have no way of being given up.
UNLOSABLE = Poison(3, _content_of, _lost)


def _told(dead: list[str]) -> str:
    return (
        f"{', '.join(dead)}: out of memory, a crash in native code, or lost nodes; "
        "the logs of Ray on those nodes say which"
    )
