"""`--runner ray`: the same stages as Ray Data operators.

Only this package imports Ray. A row is a fragment, in a block of its own. It passes through decode
(tasks), infer (a pool of actors) and publish (tasks). Only settings, URIs and references to what
the driver owns are sent to actors, so that an actor that dies can be started again anywhere. What
has been written must not depend on Ray: see `pipeline.score_table.parts`.

What is lost with its process or node is tried again: fragments by Ray without limit, which
`attempts` limits to `Pipeline.poison.attempts` each; calls, members and shared banks at most
`_RETRIES` times.

Traps of Ray 2.60 that this avoids: `read_parquet` and `write_parquet` are not used (the new reader
dies with its node, and file names change on every run). Stages do not raise for a fragment (Ray
does not retry errors of the user's functions). CPUs are requested whole (fractions can deadlock on
small nodes).
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from patchlake.pipeline.cluster import held, nodes, results
from patchlake.pipeline.cluster.attempts import FATAL, Attempts, GuardedStage, Reporter
from patchlake.pipeline.cluster.heap import trim
from patchlake.pipeline.cluster.runner import (
    INFER_SHARE,
    Pipeline,
    Stage,
    Startable,
    scoring_processes,
)
from patchlake.pipeline.headway import heard_by, listener
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T

# The memory that a decode task requests: 256 images of 224 x 224 x 3 are 38 MB, its process has 400
# MB of libraries, and one image of 100 megapixels is 300 MB in the process that decodes it. The
# request also keeps Ray from fusing decode with the infer actors, as it does with operators of
# equal requests. Decoding would then wait for the network instead of running ahead of it.
_DECODE_BYTES = 768 * 2**20

# A decode task gets at most so many rows of the plan, and fewer where there would not be so many
# tasks for each CPU: the CPUs should end at about the same time.
_MOST_ROWS, _BLOCKS_A_CPU = 64, 64

# Ray takes a job without progress for stuck after 30 minutes, but it may be waiting for spot GPUs.
_NO_PROGRESS_S = 6 * 3600

# How often a call whose worker dies, or a member that dies, is started again. Each time costs a
# start, and for a member the loading of its data. A night on spot nodes has some deaths; a member
# that is too large for the memory dies each time.
_RETRIES = 10

# How often an infer actor is started again when its start raises an error.
_INIT_RETRIES = 2

# Ray Train has two implementations. A user who still needs the first one may have set the variable
# that selects it.
_TRAIN_V2 = {"env_vars": {"RAY_TRAIN_V2_ENABLED": "1"}}


@dataclass(frozen=True)
class RayRunner:
    """Runs on the Ray that `connected` has set up.

    `workers` is the number of infer actors; None is as many as the resources allow.
    """

    workers: int | None = None

    def run(self, plan: pa.Table, pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield what the last stage returns for each row of the plan, as the rows are done."""
        gpus = nodes.offered("GPU")
        dataset = _dataset(_chunks(plan))
        attempts = Attempts.start()
        guard = partial(GuardedStage, attempts=attempts, poison=pipeline.poison)
        decode = guard("decode", pipeline.decode, is_last=False)
        actors = self._actors(gpus, nodes.offered("CPU"))
        infer = partial(guard, "infer", is_last=pipeline.publish is None)
        dataset = _map(dataset, decode, _DECODE_BYTES, nodes.decode_request())
        dataset = dataset.map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(pipeline.infer, infer, attempts, self._threads(gpus, actors)),
            num_cpus=1,
            num_gpus=1 if gpus else None,
            compute=ActorPoolStrategy(size=min(actors, len(plan))),
        )
        if pipeline.publish:
            dataset = _map(dataset, guard("publish", pipeline.publish, is_last=True))
        listener().waits("the first workers")
        with attempts.relaying(listener()):
            yield from _rows(dataset)

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield what a stage returns for each row, as the rows are done."""
        attempts = Attempts.start()
        guarded = GuardedStage("map", stage, attempts, FATAL, is_last=True)
        listener().waits("the first workers")
        with attempts.relaying(listener()):
            yield from _rows(_map(_dataset(rows), guarded))

    @property
    def processes(self) -> int:
        """The number of infer actors: it is they that hold models and banks in memory."""
        return self._actors(nodes.present("GPU"), nodes.present("CPU"))

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield what each function returns, in the order of the functions, as tasks of one CPU."""
        task: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(results.run)
        # Ray keeps waiting tasks in the driver's memory. A few for each CPU keep all CPUs busy.
        limit = 2 * max(1, nodes.present("CPU"))
        pending: deque[results.Reference] = deque()
        for call in calls:
            if len(pending) == limit:
                yield cast("T", results.get(pending.popleft()))
            pending.append(task.remote(call))
        while pending:
            yield cast("T", results.get(pending.popleft()))

    def everywhere(self, call: Callable[[], T]) -> Mapping[str, T]:
        """Call a function on each node with CPUs, and return the results by host and address."""
        task: Any = ray.remote(num_cpus=0)(results.run)
        every = ray.nodes()  # type: ignore[no-untyped-call]
        answers = {}
        for node in every:
            if not (node["Alive"] and node["Resources"].get("CPU")):
                continue
            # Soft: if the node has died meanwhile, the task runs elsewhere and the job goes on.
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            place = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            answers[place] = task.options(scheduling_strategy=there).remote(call)
        return {node: results.get(answer) for node, answer in answers.items()}

    @contextmanager
    def members(self, starts: Sequence[Callable[[], M]]) -> Iterator[Held[M]]:
        """Start an actor for each function; an actor holds what its function returns.

        They hold memory and answer in turns, so they ask Ray for no CPU. An actor that dies is
        started again, on another node if need be, and asked again.
        """
        with held.members(starts, _RETRIES) as members:
            yield members

    def sharing(self) -> held.NodeStores | None:
        """Return what uses half of the smallest node's object store; the rest is for fragments.

        None where no node has two infer actors, and before the first node with CPUs is there, as
        nobody knows yet how large its store will be.
        """
        stores = nodes.stores()
        if self.processes <= len(stores) or not stores:
            return None
        return held.NodeStores(min(stores) // 2, _RETRIES)

    def together(self, call: Callable[[Peers], None], members: int) -> None:
        """Run a function in workers of one CPU each that exchange data, until all have returned.

        A task of its own starts them and waits. Ray Train takes over SIGINT in the process that
        calls it, never gives it back, and exits with 0 on it. This must happen neither in the
        driver nor in a process that another task uses afterwards. If the task dies with its node,
        it is started again.

        Raises:
            PatchlakeError: if the function does. After other errors of it all workers are started
                again, as after the death of one.
        """
        task: Any = ray.remote(num_cpus=0, max_calls=1, runtime_env=_TRAIN_V2)(_run_together)
        # One CPU stays free for other users of the cluster.
        most = self.workers or max(1, nodes.present("CPU") - 1)
        results.get(task.remote(call, min(members, most)))

    def _actors(self, gpus: int, cpus: int) -> int:
        if self.workers:
            # Each actor holds a CPU as long as the job runs, and decode needs at least one.
            return max(1, min(self.workers, cpus - 1))
        if gpus:
            return gpus
        return scoring_processes(cpus)

    def _threads(self, gpus: int, actors: int) -> int:
        """Return the threads of an infer actor: more than one where CPUs would be left idle.

        Of two CPUs, one is for decode and publish, which take a fifth of the work.
        """
        if gpus or self.workers:
            return 1
        return max(1, round(nodes.offered("CPU") * INFER_SHARE / actors))


class _Actor:
    """An actor that starts a stage once, and is called with one row at a time."""

    def __init__(
        self,
        startable: Startable,
        guard: Callable[..., GuardedStage],
        attempts: Attempts,
        threads: int,
    ) -> None:
        with attempts.starting(), heard_by(Reporter(attempts)):
            self._stage = guard(stage=startable.start(threads))

    def __call__(self, table: pa.Table) -> pa.Table:
        nodes.announce()
        return self._stage(table)


def _run_together(call: Callable[[Peers], None], workers: int) -> None:
    # Imported here, where `_TRAIN_V2` is set and the seconds that it takes matter least.
    from patchlake.pipeline.cluster.training import run_together

    run_together(call, workers)


def _dataset(rows: Sequence[pa.Table]) -> Dataset:
    context = DataContext.get_current()
    # The job shows its progress itself (jobs.console).
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    # With one byte, every row that a task returns becomes a block of its own, whatever its size.
    context.target_max_block_size = 1
    # See `JobFault`.
    context.raise_original_map_exception = True
    # A start may fail because a store with the weights does not answer; it may answer in a moment.
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = _INIT_RETRIES
    return ray.data.from_arrow(list(rows))


def _chunks(plan: pa.Table) -> list[pa.Table]:
    """Return the plan in blocks, one for each decode task, of one row unless there are many.

    The driver holds a reference to every block as long as the job runs, at some 6 KB each, and a
    dataset of a million blocks would not start. A decode task returns each row of its block as soon
    as it has it, as a block of its own, so that the other stages do not notice.
    """
    blocks = _BLOCKS_A_CPU * max(1, nodes.offered("CPU"))
    size = min(_MOST_ROWS, max(1, len(plan) // blocks))
    return [plan.slice(begin, size) for begin in range(0, len(plan), size)]


def _map(
    dataset: Dataset,
    stage: Stage,
    memory: float | None = None,
    resources: dict[str, float] | None = None,
) -> Dataset:
    # A partial: Ray would take an object with __call__ for the class of an actor.
    function = partial(_call, stage)
    return dataset.map_batches(
        function,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        memory=memory,
        resources=resources,
    )


def _call(stage: Stage, table: pa.Table) -> pa.Table:
    nodes.announce()
    try:
        return stage(table)
    finally:
        trim()


def _rows(dataset: Dataset) -> Iterator[pa.Table]:
    with results.unwrapped_errors():
        yield from _blocks(dataset)


def _blocks(dataset: Dataset) -> Iterator[pa.Table]:
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for block in cast("Iterator[pa.Table]", blocks):
        for number in range(block.num_rows):
            yield block.slice(number, 1)
