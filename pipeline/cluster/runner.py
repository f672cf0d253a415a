"""What the two runners have in common: their interface."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from patchlake.pipeline.methods.shared.workers import Held, M, Peers, SharedArrays, T

# A function of one one-row table.
Stage = Callable[[pa.Table], pa.Table]


class Startable(Protocol):
    """The settings of a stage that is expensive to start. Each worker starts it once."""

    def start(self, threads: int) -> Stage:
        """Return the stage, which works in so many threads."""


@dataclass(frozen=True)
class Poison:
    """How rows are treated that kill their workers: how often they are tried, and what then."""

    attempts: int
    # Returns a name for a row that is the same before every stage.
    key_of: Callable[[pa.Table], str]
    # Given a row and a reason, returns a row without a result, which every stage passes on.
    given_up: Callable[[pa.Table, str], pa.Table]


@dataclass(frozen=True)
class Pipeline:
    """The stages of a job: decode, a stage that holds models, and one that writes, if any.

    `decode` is called with a row of the plan, each other stage with what the one before returned.
    """

    decode: Stage
    infer: Startable
    publish: Stage | None = None
    # None: a row that kills its worker is tried again without limit.
    poison: Poison | None = None


# Of the work on an image, in processor time: network and search take some 25 ms, decode and publish
# 6.
INFER_SHARE = 0.8


def scoring_processes(cpus: int) -> int:
    """Return how many of a cluster's CPUs run the stage that holds models, where no GPU does.

    They are what its share of the work takes, rounded down. One always stays free, or nothing would
    ever reach it.
    """
    return max(1, min(cpus - 1, int(cpus * INFER_SHARE)))


class Sharing(Protocol):
    """Holds things in memory once on each node, for all workers of the node."""

    # How many bytes all of them may take on a node.
    bytes: int

    def share(self, make: Callable[[], M]) -> SharedArrays[M]:
        """Have a function make a thing, whose arrays the workers read in place."""


@runtime_checkable
class Runner(Protocol):
    """Runs the work of a job, in this process or on a cluster.

    Functions that are passed to it may be sent to other machines: they must hold no more than
    settings, paths and small arrays.
    """

    @property
    def processes(self) -> int:
        """The number of processes that can hold something in memory at the same time."""

    def run(self, plan: pa.Table, pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield what the last stage returns for each row of the plan, as the rows are done."""

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield what a stage returns for each row, as the rows are done."""

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield what each function returns, in the order of the functions."""

    def everywhere(self, call: Callable[[], T]) -> Mapping[str, T]:
        """Call a function in one worker of each node, and return the results by the node's name.

        The mapping is empty where this process is the only worker.
        """

    def members(self, starts: Sequence[Callable[[], M]]) -> AbstractContextManager[Held[M]]:
        """Call each function in a worker of its own, which holds what it returns.

        They are gone when the block ends. If a worker dies, its function is called again in another
        one, which is then asked again.
        """

    def sharing(self) -> "Sharing | None":
        """Return what holds things once on each node, or None if no two workers share one."""

    def together(self, call: Callable[[Peers], None], members: int) -> None:
        """Run a function in at most `members` workers that exchange data, until all have returned.

        If a worker dies, the function is started again in all workers. It has to go on from what it
        has written.
        """
