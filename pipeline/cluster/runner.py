"""What the two runners have in common: their interface."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

# A function of one one-row table.
Stage = Callable[[pa.Table], pa.Table]


class Startable(Protocol):
    """Settings of a stage that is expensive to start: a worker starts it once."""

    def start(self) -> Stage:
        """Return the stage."""


@dataclass(frozen=True)
class Pipeline:
    """decode, then a stage that holds models, then what is left to do, if anything."""

    decode: Stage
    infer: Startable
    publish: Stage | None = None


class Runner(Protocol):
    """Passes rows through a pipeline, in any order."""

    def run(self, rows: Sequence[pa.Table], pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield the last stage's row for each row, as they are done."""

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield one stage's row for each row, as they are done."""
