"""What the two runners have in common: their interface."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from patchlake.pipeline.methods.shared.workers import Held, M, Peers, Shared, T

# A function of one one-row table.
Stage = Callable[[pa.Table], pa.Table]


class Startable(Protocol):
    """Settings of a stage that is expensive to start: a worker starts it once."""

    def start(self) -> Stage:
        """Return the stage."""


@dataclass(frozen=True)
class Poison:
    """What becomes of a row over which workers die: tried so often, then given up."""

    attempts: int
    # The name of a row, the same before every stage.
    key_of: Callable[[pa.Table], str]
    # (row, reason) -> a row that every stage passes on.
    given_up: Callable[[pa.Table, str], pa.Table]


@dataclass(frozen=True)
class Pipeline:
    """decode, then a stage that holds models, then what is left to do, if anything.

    decode is given a row of the plan; every other stage what the one before it returned.
    """

    decode: Stage
    infer: Startable
    publish: Stage | None = None
    # None: a row is tried for ever.
    poison: Poison | None = None


class Sharing(Protocol):
    """Where things are in memory once a node, however many workers it has."""

    # How much there is room for.
    bytes: int

    def share(self, make: Callable[[], M]) -> Shared[M]:
        """Make a thing, whose arrays workers read in place."""


class Runner(Protocol):
    """Where work is done. What is passed to it must be settings, paths and small arrays."""

    @property
    def processes(self) -> int:
        """Processes that can hold something in memory at the same time."""

    def run(self, plan: pa.Table, pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield the last stage's row for each row of the plan, as they are done."""

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield one stage's row for each row, as they are done."""

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield the result of each call, in their order."""

    def everywhere(self, call: Callable[[], T]) -> Mapping[str, T]:
        """Return what a function returns in one worker of each node, by the node's name.

        Empty where the only worker is this process.
        """

    def members(self, starts: Sequence[Callable[[], M]]) -> AbstractContextManager[Held[M]]:
        """Start a thing in a worker each; they go when the block ends.

        One whose process dies is started again from its `start`, and asked again.
        """

    def sharing(self) -> "Sharing | None":
        """Return where workers can have things in common; None where no two share a machine."""

    def together(self, call: Callable[[Peers], None], members: int) -> None:
        """Run a function in at most `members` workers in step, until all have returned.

        Where a worker dies it is started again in all of them, and must go on from what it wrote.
        """
