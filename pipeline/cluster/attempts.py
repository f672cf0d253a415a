"""Count the attempts at each row, so that a row that kills its workers is not tried for ever.

When a worker process dies, Ray runs its work again on another one, without any limit: most deaths
are of nodes, and the row at hand has nothing to do with them. But a row may also be the cause of
the death, by a crash in native code or by its need of memory, and then it would kill one worker
after the other.

So each worker tells an actor on the driver's node, the register, when it begins a row and when it
has ended it, with a result or an error. A row that was begun as often as is allowed and was never
ended is not begun again: it is given up. In the same way, starts of the infer actors are counted.

The register also keeps how far the rows at hand are (`pipeline.headway`) until the driver asks.
"""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from patchlake.pipeline.cluster.runner import Poison, Stage
from patchlake.pipeline.errors import PatchlakeError, StorageError, WorkersLost
from patchlake.pipeline.headway import Listener, heard_by
from patchlake.pipeline.reading.apart import expendable

# An actor that has died so often while it started is not started again. How often a row is tried is
# a setting; this is not.
_STARTS = 3
# How often workers tell how far they are, and how often the driver asks.
_NEWS_S = 1.0


class _Register:
    """Knows for each row, and for each stage, which workers have begun it and did not end it."""

    def __init__(self) -> None:
        # (stage, key of the row) -> workers.
        self._begun: dict[tuple[str, str], list[str]] = {}
        # What the driver has not fetched yet. Stage, key of the row -> images that have passed.
        self._passed: dict[tuple[str, str], int] = {}
        self._awaited: list[str] = []

    def begin(self, stage: str, key: str, worker: str, limit: int) -> list[str] | None:
        """Return None if the row may be begun, else the workers that died while they had it."""
        begun = self._begun.setdefault((stage, key), [])
        if len(begun) >= limit:
            return begun
        begun.append(worker)
        return None

    def end(self, stage: str, key: str) -> None:
        """Forget the row: its worker is alive."""
        self._begun.pop((stage, key), None)

    def passed(self, stage: str, key: str, images: int) -> None:
        """Keep how far a row is."""
        self._passed[stage, key] = images

    def waits(self, what: str) -> None:
        """Keep what a worker waits for."""
        self._awaited = [what]

    def news(self) -> tuple[list[str], dict[tuple[str, str], int]]:
        """Return what was kept since the last call."""
        found = self._awaited, self._passed
        self._awaited, self._passed = [], {}
        return found


@dataclass(frozen=True)
class Attempts:
    """What a worker reports its attempts to. It is sent to the workers with each stage.

    `register` is the handle of the actor. Build it with `start`.
    """

    register: Any

    @classmethod
    def start(cls) -> "Attempts":
        """Start the register on the driver's own node, so that it lives as long as the driver."""
        here = ray.get_runtime_context().get_node_id()
        kind: Any = ray.remote(_Register)
        placed = NodeAffinitySchedulingStrategy(here, soft=True)
        # If it dies all the same, it is started again. It has then forgotten what it counted, which
        # is better than the end of the job.
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return cls(kind.options(scheduling_strategy=placed, **options).remote())

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Count a start of this actor; the block is the start.

        Raises:
            WorkersLost: if the actor has died too often while it started.
        """
        actor = str(ray.get_runtime_context().get_actor_id())
        dead = self._begin("start", actor, _STARTS)
        if dead:
            raise WorkersLost(
                f"a worker died {len(dead)} times while it started ({_causes_of_death(dead)})"
            )
        with self._ending("start", actor):
            yield

    @contextmanager
    def trying(self, stage: str, key: str, limit: int) -> Iterator[str | None]:
        """Count an attempt at a row; the block is the attempt.

        Args:
            stage: The name of the stage.
            key: The key of the row.
            limit: How often it may be tried.

        Yields:
            None, or why the row is to be given up.
        """
        dead = self._begin(stage, key, limit)
        if dead:
            causes = _causes_of_death(dead)
            yield f"{stage}: its worker died {len(dead)} times while processing it ({causes})"
            return
        with self._ending(stage, key):
            yield None

    @contextmanager
    def _ending(self, name: str, key: str) -> Iterator[None]:
        # Also after an error: the worker is alive then.
        try:
            yield
        finally:
            self.register.end.remote(name, key)

    @contextmanager
    def relaying(self, to: Listener) -> Iterator[None]:
        """Tell this listener, every second until the block ends, what the workers' stages tell."""
        ended = threading.Event()
        thread = threading.Thread(target=self._relay, args=(to, ended), name="news", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _relay(self, to: Listener, ended: threading.Event) -> None:
        asked: Any = None
        while not ended.wait(_NEWS_S):
            # The register forgets what it tells. So an answer that is late, as the first one is
            # where the register is still being started, is waited for and not asked for again.
            asked = asked or self.register.news.remote()
            try:
                awaited, passed = ray.get(asked, timeout=_NEWS_S)
            except GetTimeoutError:
                continue
            except RayError:
                # It is being started again, or the cluster is gone, which the job itself finds out.
                asked = None
                continue
            asked = None
            for what in awaited:
                to.waits(what)
            for (stage, key), images in passed.items():
                to.passed(stage, key, images)

    def _begin(self, stage: str, key: str, limit: int) -> list[str] | None:
        worker = f"process {os.getpid()} on {socket.gethostname()}"
        begun: list[str] | None = ray.get(self.register.begin.remote(stage, key, worker, limit))
        return begun


class Reporter:
    """Tells the register how far a stage of this worker is, once a second. See `Listener`."""

    def __init__(self, attempts: Attempts) -> None:
        self._register = attempts.register
        self._at = 0.0
        # What was not told, as it was too early.
        self._kept: tuple[str, str, int] | None = None

    def passed(self, stage: str, key: str, images: int) -> None:
        """See `Listener`."""
        self._kept = (stage, key, images)
        if time.monotonic() - self._at >= _NEWS_S:
            self.flush()

    def waits(self, what: str) -> None:
        """See `Listener`."""
        self._register.waits.remote(what)

    def flush(self) -> None:
        """Tell what was not told."""
        if self._kept is not None:
            self._register.passed.remote(*self._kept)
        self._at, self._kept = time.monotonic(), None


class JobFault(UserCodeException):
    """Carries an error that ends the whole job through Ray Data.

    Ray Data wraps any other exception in one of its own, and what it was is lost. Or, where it is
    set to raise the original one, it adds advice on Ray's settings to its first argument and logs a
    traceback. It does neither with this type, whose first argument is the message and whose second
    is the error itself.
    """

    @property
    def fault(self) -> PatchlakeError | StorageError:
        """The error that the stage raised."""
        return cast("PatchlakeError | StorageError", self.args[1])


@dataclass(frozen=True)
class GuardedStage:
    """A stage whose attempts at each row are counted, as a function that Ray Data can map."""

    name: str
    stage: Stage
    attempts: Attempts
    poison: Poison | None
    # Whether this is the last stage. It makes the pipeline's result of each row, and is therefore
    # called for a row that is given up, too.
    is_last: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the stage's row, or one that says why the row was given up.

        Raises:
            JobFault: where the stage raises an error that ends the job.
        """
        # This process may die over the row: that is counted, and nothing else is lost.
        expendable()
        reporter = Reporter(self.attempts)
        try:
            with heard_by(reporter):
                return self._guarded(table)
        except (PatchlakeError, StorageError) as error:
            raise JobFault(str(error), error) from error
        finally:
            reporter.flush()

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


# For rows without which the job cannot go on: instead of giving one up, the job ends.
FATAL = Poison(3, _content_of, _lost)


def _causes_of_death(dead: list[str]) -> str:
    return (
        f"{', '.join(dead)}: out of memory, a crash in native code, or a lost node; "
        "Ray's logs on those nodes say which"
    )
