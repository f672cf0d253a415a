"""`--runner ray`: the same stages as Ray Data operators.

Only this package imports Ray. One row is one fragment, in a block of its own, through decode
(tasks), infer (an actor pool) and publish (tasks). Only settings, URIs and references to what the
driver owns travel to actors, so that an actor that dies is started again anywhere. Durability is
not Ray's business: see `pipeline.score_table.parts`.

What dies with its process or node is tried again: fragments without end by Ray, but each at most
`Pipeline.poison.attempts` times by `attempts`; calls, members and shared banks `_RETRIES` times.

Traps of Ray 2.60 that this avoids: `read_parquet` and `write_parquet` are not used (the new reader
dies with its node, file names change on every run); stages do not raise for a fragment (user
errors are not retried); CPUs are asked for whole (fractions can deadlock on small nodes).
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
from patchlake.pipeline.cluster.attempts import UNLOSABLE, Attempts, Guarded
from patchlake.pipeline.cluster.heap import trim
from patchlake.pipeline.cluster.runner import Pipeline, Stage, Startable
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T

# Of a decode task: 256 images of 224 x 224 x 3 are 38 MB, its process has 400 MB of libraries, and
# one 100-megapixel image is 300 MB in the process that decodes it. Declared, it also keeps Ray from
# fusing decode into the actors: it fuses what asks for the same resources, and decoding would then
# wait for the network instead of running ahead.
_DECODE_BYTES = 768 * 2**20

# Of the plan's rows in one decode task: 64 for every CPU's last task of 16 and more.
_MOST_ROWS, _BLOCKS_A_CPU = 64, 64

# A job that waits for spot GPUs is not stuck: Ray's own limit is 30 minutes.
_NO_PROGRESS_S = 6 * 3600

# Deaths of a call's worker, or of a member, that are made good; each costs a start, and the loading
# of a share. A night on spot nodes has some; one that dies of its own size does so each time.
_RETRIES = 10

# Of an infer worker whose start raises, one after the other.
_INIT_RETRIES = 2

# Ray Train has two implementations, and whoever still needs the first may have set its variable.
_TRAIN_V2 = {"env_vars": {"RAY_TRAIN_V2_ENABLED": "1"}}


@dataclass(frozen=True)
class RayRunner:
    """Runs on the Ray that `connected` has set up. `workers`: infer actors; None, by resources."""

    workers: int | None = None

    def run(self, plan: pa.Table, pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield the last stage's row for each row of the plan, as they are done."""
        gpus = nodes.offered("GPU")
        dataset = _dataset(_chunks(plan))
        attempts = Attempts.counted()
        guard = partial(Guarded, attempts=attempts, poison=pipeline.poison)
        decode = guard("decode", pipeline.decode, is_last=False)
        infer = partial(guard, "infer", is_last=pipeline.publish is None)
        dataset = _map(dataset, decode, _DECODE_BYTES, nodes.decode_request())
        dataset = dataset.map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(pipeline.infer, infer, attempts),
            num_cpus=1,
            num_gpus=1 if gpus else None,
            compute=ActorPoolStrategy(
                size=min(self._actors(gpus, nodes.offered("CPU")), len(plan))
            ),
        )
        if pipeline.publish:
            dataset = _map(dataset, guard("publish", pipeline.publish, is_last=True))
        return _rows(dataset)

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield one stage's row for each row, as they are done."""
        guarded = Guarded("map", stage, Attempts.counted(), UNLOSABLE, is_last=True)
        return _rows(_map(_dataset(rows), guarded))

    @property
    def processes(self) -> int:
        """Infer workers hold what has to be held."""
        return self._actors(nodes.present("GPU"), nodes.present("CPU"))

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield the result of each call, in order, as tasks of one CPU."""
        task: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(results.run)
        # Ray keeps what waits in the driver: a few a CPU are enough to keep all busy.
        limit = 2 * max(1, nodes.present("CPU"))
        pending: deque[results.Reference] = deque()
        for call in calls:
            if len(pending) == limit:
                yield cast("T", results.get(pending.popleft()))
            pending.append(task.remote(call))
        while pending:
            yield cast("T", results.get(pending.popleft()))

    def everywhere(self, call: Callable[[], T]) -> Mapping[str, T]:
        """Return what a function returns in a task on each node that has CPUs, by its address."""
        task: Any = ray.remote(num_cpus=0)(results.run)
        every = ray.nodes()  # type: ignore[no-untyped-call]
        asked = {}
        for node in every:
            if not (node["Alive"] and node["Resources"].get("CPU")):
                continue
            # Soft: a node that dies meanwhile is no reason to end the job.
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            place = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            asked[place] = task.options(scheduling_strategy=there).remote(call)
        return {node: results.get(answer) for node, answer in asked.items()}

    @contextmanager
    def members(self, starts: Sequence[Callable[[], M]]) -> Iterator[Held[M]]:
        """Start an actor each. They hold memory and answer in turns, so they ask for no CPU.

        An actor that dies is started again, on another node if need be, and asked again.
        """
        with held.members(starts, _RETRIES) as members:
            yield members

    def sharing(self) -> held.Store | None:
        """Return half of what the smallest node's store holds; the rest is for fragments.

        None before the first node with CPUs is there, whose store nobody knows.
        """
        stores = nodes.stores()
        if self.processes <= len(stores) or not stores:
            return None
        return held.Store(min(stores) // 2, _RETRIES)

    def together(self, call: Callable[[Peers], None], members: int) -> None:
        """Run a function in workers of one CPU each, in step, until all have returned.

        In a task of its own, which only waits. Ray Train takes over SIGINT in the process that
        calls it, never gives it back, and exits with 0 on it: not in the driver, and not in a
        process that another task uses afterwards. A task that dies with its node starts again.

        Raises:
            PatchlakeError: if the function does; other errors are tried again like a death.
        """
        task: Any = ray.remote(num_cpus=0, max_calls=1, runtime_env=_TRAIN_V2)(_run_together)
        # One CPU stays free for whoever else shares the cluster.
        most = self.workers or max(1, nodes.present("CPU") - 1)
        results.get(task.remote(call, min(members, most)))

    def _actors(self, gpus: int, cpus: int) -> int:
        if self.workers:
            # Each holds a CPU as long as the job runs: with none left nothing would be decoded.
            return max(1, min(self.workers, cpus - 1))
        if gpus:
            return gpus
        # On CPUs the network takes some 35 ms an image, decode and publish 10: about 3 to 1; and
        # one CPU always stays free for them, or nothing would ever reach the actors.
        return max(1, min(cpus - 1, cpus * 3 // 4))


class _Actor:
    """Starts a stage in the worker, and is called with one row at a time."""

    def __init__(
        self, startable: Startable, guard: Callable[..., Guarded], attempts: Attempts
    ) -> None:
        with attempts.starting():
            self._stage = guard(stage=startable.start())

    def __call__(self, table: pa.Table) -> pa.Table:
        nodes.announce()
        return self._stage(table)


def _run_together(call: Callable[[Peers], None], workers: int) -> None:
    # Imported where `_TRAIN_V2` holds, and where the seconds it takes matter least.
    from patchlake.pipeline.cluster.training import run_together

    run_together(call, workers)


def _dataset(rows: Sequence[pa.Table]) -> Dataset:
    context = DataContext.get_current()
    # Progress is the job's own (jobs.console); Ray's would tell it twice.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    # In bytes: every row that a task returns is a block of its own, whatever its size.
    context.target_max_block_size = 1
    # See `JobFault`.
    context.raise_original_map_exception = True
    # Weights on a store that does not answer may be read in a moment.
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = _INIT_RETRIES
    return ray.data.from_arrow(list(rows))


def _chunks(plan: pa.Table) -> list[pa.Table]:
    """Return the plan as blocks for decode, of one row each unless there are many.

    The driver holds a reference to every block from beginning to end, at some 6 KB, and a dataset
    of a million would not start. A decode task returns each row of its block when it has it, as a
    block of its own, so that nothing else changes.
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
    # A partial, because Ray takes an object with __call__ for an actor's class.
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
    with results.told():
        yield from _blocks(dataset)


def _blocks(dataset: Dataset) -> Iterator[pa.Table]:
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for block in cast("Iterator[pa.Table]", blocks):
        for number in range(block.num_rows):
            yield block.slice(number, 1)
