"""Fragments through the stages of a job, counted; those that fail are listed."""

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from patchlake.pipeline.cluster.runner import Pipeline, Poison, Runner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.heartbeat import Heart
from patchlake.pipeline.driver.observer import Observer
from patchlake.pipeline.driver.underway import Underway
from patchlake.pipeline.headway import heard_by
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record.pulse import Speed
from patchlake.pipeline.stages.batch import FragmentResult, given_up, key_of

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What came back from the fragments of this start."""

    # Fragments that this start has passed through the pipeline, and their images.
    fragments: int = 0
    images: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    # Of what earlier starts of this run have done.
    earlier: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    # Files of the lake that cannot be read, and why.
    damaged: Mapping[str, str] = field(default_factory=dict)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    # Stage -> node -> fragments.
    nodes: dict[str, Counter[str]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, result: FragmentResult) -> None:
        """Count one fragment."""
        self.fragments += 1
        self.images += result.planned
        self.statuses.update(result.statuses)
        self.duplicates += result.duplicates
        for stage, seconds in result.seconds.items():
            # Counter holds any number; its type only says int.
            self.stage_seconds[stage] += seconds  # type: ignore[assignment]
        for stage, node in result.nodes.items():
            self.nodes.setdefault(stage, Counter())[node] += 1
        if result.failure is not None:
            self.failed[result.key] = result.failure

    @property
    def error_rows(self) -> int:
        """Rows without a result."""
        # Copied: another thread asks.
        return sum(count for status, count in dict(self.statuses).items() if status != "ok")

    def in_words(self) -> str:
        """Return errors and the time of each operator."""
        # Copied: another thread asks.
        seconds = dict(self.stage_seconds)
        each = [f"{n} {1000 * s / max(1, self.images):.0f}" for n, s in sorted(seconds.items())]
        operators = f"{', '.join(each)} ms an image; " if each else ""
        return f"{operators}{self.error_rows} error rows, {len(self.failed)} fragments failed"

    def speed(self, images: int, passed: int) -> Speed:
        """Return the same as numbers, where so many of all images have passed the network."""
        rate = passed / max(time.monotonic() - self.started, 1e-9)
        return Speed(
            images=images,
            images_done=self.images,
            error_rows=self.error_rows,
            failed_fragments=len(self.failed),
            images_per_second=rate,
            seconds_left=(images - passed) / rate if passed else None,
            stage_seconds={stage: float(s) for stage, s in dict(self.stage_seconds).items()},
        )


def drive(
    heart: Heart, runner: Runner, pending: Fragments, pipeline: Pipeline, observer: Observer
) -> Tally:
    """Pass the pending fragments through the pipeline; list those that fail."""
    tally, run = Tally(), heart.run
    attempts = run.record.settings.fragment_attempts
    pipeline = replace(pipeline, poison=Poison(attempts, key_of, given_up))

    underway = Underway()

    def note() -> str:
        return "; ".join(filter(None, [underway.in_words(), tally.in_words()]))

    with observer.task(run.record.verb, pending.images, "images", note) as advance:
        underway.follow(advance)
        heart.measure = lambda: tally.speed(pending.images, underway.images)
        with heard_by(underway):
            for row in runner.run(pending.table, pipeline) if pending else ():
                result = FragmentResult.from_arrow(row)
                tally.add(result)
                if result.failure is not None:
                    run.fail(result.key, result.failure)
                    log.warning(
                        "fragment %s of %s failed: %s", result.key, result.path, result.failure
                    )
                underway.finish(result.key, result.planned)
    return tally


def half_of_memory() -> int:
    """Return half of this machine's memory, in bytes: the default of `memory_budget`."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def models_budget(settings: Settings) -> int:
    """Return the bytes of models that one infer worker keeps loaded.

    The other half of a worker's memory is for images and embeddings; without `memory_budget`, as
    if each core of a machine like this one had a worker.
    """
    if settings.memory_budget:
        return settings.memory_budget // 2
    return half_of_memory() // (os.cpu_count() or 1)
