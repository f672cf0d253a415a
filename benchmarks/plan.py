"""Time and memory of a plan of many fragments, as `score` makes it before anything is decoded.

python benchmarks/plan.py --files 50000 --fragments 20
python benchmarks/plan.py --files 100000 --fragments 1 --new 1000

Simulated is the listing: a file system of N names, every one of which is the same Parquet file, in
memory. What is timed is real: each footer is opened and parsed, fragments are cut, kept by
`--where`, given keys, named, written as plan.arrow, and compared with a listing of parts of which
half are done. With `--new` then comes the next night: so many files are new, the others known. What
is not in it: the latency of a store, and the seconds of its listing (S3 lists some 1,000 names a
request).
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score  # noqa: F401 - with all that a driver imports
from patchlake.pipeline.lake.plan import plan_fragments, read_cuts, write_cuts
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.planning import Plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.storage.folder import Folder

T = TypeVar("T")

_GROUPS = 300


class Simulated(AbstractFileSystem):
    """`count` files that are all `content`."""

    protocol = "simulated"
    count: ClassVar[int] = 0
    # The first of them have been replaced.
    changed: ClassVar[int] = 0
    contents: ClassVar[list[bytes]] = []

    def find(self, path: str, detail: bool = False, **_: object) -> dict[str, dict[str, object]]:  # noqa: ARG002, FBT001, FBT002 - fsspec's signature
        """Return all files."""
        size = len(self.contents[0])
        return {
            name: {"name": name, "size": size, "type": "file", "ETag": etag}
            for number in range(self.count)
            for name in [f"lake/dt=2026-{1 + number % 12:02d}-01/images-{number:08d}.parquet"]
            for etag in [f"{number:031x}{int(number < self.changed)}"]
        }

    def _open(self, path: str, mode: str = "rb", **_: object) -> io.BytesIO:  # noqa: ARG002
        number = int(path.rpartition("-")[2].removesuffix(".parquet"))
        return io.BytesIO(self.contents[number % _GROUPS])


def simulate(files: int, fragments: int, fragment_images: int) -> None:
    """Set up a lake of so many files of so many full fragments, in 300 groups."""
    fsspec.register_implementation("simulated", Simulated, clobber=True)
    rows = fragments * fragment_images
    for group in range(_GROUPS):
        sink = io.BytesIO()
        table = pa.table(
            {
                "image_id": pa.array([""] * rows),
                "image": pa.array([b""] * rows, pa.binary()),
                "group": pa.array([f"product-{group:03d}"] * rows),
            }
        )
        pq.write_table(table, sink, row_group_size=fragment_images)
        Simulated.contents.append(sink.getvalue())
    Simulated.count = files


def timed(what: str, work: Callable[[], T]) -> T:
    """Return what the work returns; say how long it took, and the peak of memory so far.

    On a busy machine the time of the processor says more.
    """
    started, cpu = time.perf_counter(), time.process_time()
    done = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{what:32s} {time.perf_counter() - started:7.1f} s ({time.process_time() - cpu:.1f} s of "
        f"CPU), peak so far {peak:6.0f} MiB",
        flush=True,
    )
    return done


def _summary(run: str, fragments: Fragments, version: str) -> bytes:
    """Return what is written last: it names every part."""
    names = [parts.part_name(version, fragment) for fragment in fragments]
    summary = runs.Summary(
        run=run,
        verb="score",
        finished_at=datetime.now(UTC),
        fragments=len(fragments),
        already_done=0,
        failed_fragments={},
        images=fragments.images,
        statuses={"ok": fragments.images},
        duplicate_image_ids=0,
        seconds=0.0,
        stage_seconds={},
        removed_parts=[],
        groups={},
        libraries={},
        settings=Settings(),
        parts=names,
    )
    return summary.model_dump_json(indent=1).encode()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--fragments", type=int, default=20, help="of each file")
    parser.add_argument("--where", help="as of `score`; a day of the month is one in twelve")
    parser.add_argument("--new", type=int, default=0, help="files that are new on the next night")
    arguments = parser.parse_args()
    settings = Settings()
    timed("imports, simulated files", lambda: simulate(arguments.files, arguments.fragments, 256))
    started = time.perf_counter()
    lake, version = Folder("simulated://lake"), "0" * 12
    plan = timed("footers, cut, where", lambda: plan_fragments(lake, settings, arguments.where))
    plan = timed("keys", lambda: plan.keyed({}, otherwise="settings"))
    run = timed("name of the run", lambda: runs.identify(lake, version, None, plan.kept))
    record = runs.RunRecord(
        run=run,
        verb="score",
        images=lake.root,
        where=None,
        version=version,
        started_at=datetime.now(UTC),
        settings=settings,
    )
    with tempfile.TemporaryDirectory() as folder:
        timed("plan.arrow", lambda: runs.begin(Folder.at(folder), record, plan.kept))
    planning = time.perf_counter() - started
    half = plan.kept[: len(plan.kept) // 2]
    done = timed(
        "names of half of the parts",
        lambda: parts.CommittedParts.of(parts.part_name(version, fragment) for fragment in half),
    )
    pending = timed("what is pending", lambda: plan.kept.without_keys(done.sorted_keys))
    timed("summary.json, as of all parts", lambda: len(_summary(run, plan.kept, version)))
    print(
        f"{len(plan.every)} fragments, {len(plan.kept)} kept, {plan.images} images, "
        f"{len(pending)} pending: {planning:.1f} s before parts are listed, "
        f"{plan.kept.table.nbytes / max(1, len(plan.kept)):.0f} bytes a fragment"
    )
    if arguments.new:
        _next_night(lake, settings, plan, arguments.new)


def _next_night(lake: Folder, settings: Settings, plan: Plan, new: int) -> None:
    Simulated.changed = new
    none = Fragments.of([])
    with tempfile.TemporaryDirectory() as folder:
        scores = Folder.at(folder)
        timed("_cuts, written", lambda: write_cuts(scores, settings, plan, none))
        started = time.perf_counter()
        known = timed("_cuts, read", lambda: read_cuts(scores, settings))
        again = timed(
            "footers of the new files", lambda: plan_fragments(lake, settings, None, known)
        )
        again = timed("keys", lambda: again.keyed({}, otherwise="settings"))
        done = parts.CommittedParts.of(parts.part_name("0" * 12, f) for f in plan.every)
        pending = timed("what is pending", lambda: again.kept.without_keys(done.sorted_keys))
    print(
        f"next night: {again.opened} of {len(again.every.paths)} files opened, "
        f"{len(pending)} fragments pending: {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
