"""What the driver costs: fragments that need no work, and workers that only sleep.

python benchmarks/driver.py --workers 1 2 16

The three operators of a job run as they are, with stages that read nothing. First all stages are
empty: seconds per 1,000 fragments are Ray's and the driver's own. Then decode, infer and publish
sleep as long as a fragment of 256 images takes (`--seconds`, scaled down), so that two cores can
stand for many workers: efficiency is what W workers pass, over W times what one of them could.
A worker is a process of some 0.3 GB all the same.
"""

import argparse
import resource
import time
from dataclasses import dataclass

import pyarrow as pa
import ray

from patchlake.pipeline.cluster.on_ray import RayRunner
from patchlake.pipeline.cluster.runner import Pipeline, Stage
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.stages.batch import FragmentBatch, result_of

_IMAGES = 256


def plan_of(count: int) -> Fragments:
    """Return a plan of so many full fragments."""
    return Fragments.of(
        Fragment(f"{number:06d}.parquet", (0,), 0, "g", _IMAGES, "v", f"{number:020d}")
        for number in range(count)
    )


@dataclass(frozen=True)
class Begin:
    """decode: a fragment without rows, after a while."""

    seconds: float

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch."""
        time.sleep(self.seconds)
        return FragmentBatch(Fragments(table)[0]).to_arrow()


@dataclass(frozen=True)
class Pass:
    """infer: what comes in goes out, after a while."""

    seconds: float

    def start(self, threads: int) -> Stage:  # noqa: ARG002 - as the runner calls it
        """Return the stage."""
        return self

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch."""
        time.sleep(self.seconds)
        return table


@dataclass(frozen=True)
class End:
    """publish: the result, after a while."""

    seconds: float

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the result."""
        time.sleep(self.seconds)
        return result_of(FragmentBatch.from_arrow(table))


def passed(count: int, workers: int, seconds: float) -> tuple[float, float]:
    """Return seconds until the first fragment is through, and fragments a second after that."""
    pipeline = Pipeline(Begin(seconds / 4), Pass(seconds), End(seconds / 8))
    started = time.perf_counter()
    times = [
        time.perf_counter() - started
        for _ in RayRunner(workers).run(plan_of(count).table, pipeline)
    ]
    # The pools are filling at first, and run empty at last.
    begin, end = count // 5, count - count // 5 - 1
    return times[0], (end - begin) / (times[end] - times[begin])


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--fragments", type=int, default=2000, help="of the empty run")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of a sleeping fragment in infer"
    )
    parser.add_argument("--rounds", type=int, default=20, help="fragments a sleeping worker")
    arguments = parser.parse_args()
    for workers in arguments.workers:
        # Workers, and decode and publish beside them: half as many CPUs, and one to spare.
        ray.init(
            "local",
            num_cpus=workers + -(-workers // 2) + 1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=400 * 2**20,
        )
        passed(4, workers, 0.0)
        first, rate = passed(arguments.fragments, workers, 0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{workers} workers, empty stages: {1000 / rate:.1f} s per 1,000 fragments "
            f"({_IMAGES * rate:.0f} images/s), first after {first:.1f} s, driver {peak:.0f} MiB",
            flush=True,
        )
        _, sleeping = passed(arguments.rounds * workers, workers, arguments.seconds)
        print(
            f"{workers} workers, sleeping {arguments.seconds} s a fragment: "
            f"{_IMAGES * sleeping:.0f} images/s, efficiency "
            f"{sleeping * arguments.seconds / workers:.2f}",
            flush=True,
        )
        ray.shutdown()


if __name__ == "__main__":
    main()
