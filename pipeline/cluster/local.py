"""`--runner local`: the stages in this process, one fragment after the other.

The next fragment is decoded while the present one is in the network.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline.cluster.runner import Pipeline, Stage


@dataclass(frozen=True)
class LocalRunner:
    """Runs everything here."""

    def run(self, rows: Sequence[pa.Table], pipeline: Pipeline) -> Iterator[pa.Table]:
        """Yield the last stage's row for each row, in order."""
        infer = pipeline.infer.start()
        with ThreadPoolExecutor(1) as ahead:
            upcoming: Future[pa.Table] | None = (
                ahead.submit(pipeline.decode, rows[0]) if rows else None
            )
            for number in range(len(rows)):
                assert upcoming is not None
                decoded = upcoming.result()
                later = number + 1
                upcoming = ahead.submit(pipeline.decode, rows[later]) if later < len(rows) else None
                done = infer(decoded)
                yield pipeline.publish(done) if pipeline.publish else done

    def map(self, rows: Sequence[pa.Table], stage: Stage) -> Iterator[pa.Table]:
        """Yield one stage's row for each row, in order."""
        return map(stage, rows)
