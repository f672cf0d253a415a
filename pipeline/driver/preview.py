"""`--dry-run`: what a job would do, and what it would cost by a sample that is really done.

The sample goes through the job's own stages in this process, on one CPU, and what it writes goes
to a temporary folder: nothing is written to SCORES or MODEL.
"""

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from patchlake.pipeline.cluster.runner import Pipeline, scoring_processes
from patchlake.pipeline.driver.execution import Place
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.reading.planning import Plan
from patchlake.pipeline.stages.batch import FragmentResult
from patchlake.pipeline.storage.folder import Folder

# Until the workers of a Ray that is started here have imported what they need: 12 s on two cores.
_RAY_SECONDS = 12.0

# Enough for a mean of a few stations and days; a few seconds with WideResNet-50.
_SAMPLED_FRAGMENTS, _SAMPLED_IMAGES = 4, 8


@dataclass(frozen=True)
class Preview:
    """A plan, and estimates from a sample. Bytes are bytes, seconds are seconds."""

    verb: str
    images_root: str
    target: str
    groups: int
    files: int
    fragments: int
    images: int
    # Of the Parquet files, in proportion to the rows that are kept.
    bytes: int
    fragments_done: int
    fragments_pending: int
    images_pending: int
    # Images of the sample, and what one costs on one CPU, by stage. Empty if nothing is pending.
    sampled_images: int
    seconds_per_image: Mapping[str, float]
    # Of all that is pending, on one CPU.
    cpu_seconds: float
    # Where it would run, and for how long: until the first fragment begins, and in all, on this
    # machine with nothing beside it, or on a cluster with as many CPUs.
    place: Place
    cpus: int
    startup_seconds: float
    seconds: float
    # Largest resident memory of this process before the sample, and after it, where it has done all
    # stages in one, with the encoded images and pixels of the largest fragment added.
    driver_bytes: int
    worker_bytes: int
    # What a fit keeps in MODEL until it is published; 0 for a score.
    stored_bytes: int
    # Parts that --expire would remove now, and their rows.
    expiring_parts: tuple[str, ...] = ()
    expiring_images: int = 0


@dataclass(frozen=True)
class CostSample:
    """What the sampled fragments cost."""

    images: int
    # By stage, of one image.
    seconds: Mapping[str, float]
    # Of this process before the sample.
    driver_bytes: int
    # What this process took but for the sample itself: imports, the plan, weights and models, and a
    # first fragment to warm up.
    startup_seconds: float = 0.0
    # One image between decode and infer.
    decoded_bytes: int = 0
    # All that was written below the prefix asked for.
    stored_bytes: int = 0


def measure(
    pending: Fragments, pipeline: Pipeline, scratch: Folder, stored: str = ""
) -> CostSample:
    """Pass a few images of a few fragments, evenly spread, through the stages.

    Args:
        pending: What the job would do.
        pipeline: Its stages, which write to `scratch`.
        scratch: A temporary folder.
        stored: Folder in `scratch` whose bytes are counted.

    Raises:
        FragmentsFailed: if a sampled fragment cannot be done.
    """
    driver_bytes = _peak_bytes()
    if not pending:
        return CostSample(0, {}, driver_bytes)
    infer = pipeline.infer.start(1)
    places = np.linspace(0, len(pending) - 1, min(_SAMPLED_FRAGMENTS, len(pending))).astype(int)
    chosen = [_middle(pending[int(place)]) for place in places]
    seconds: Counter[str] = Counter()
    # The first is done twice, and counted once: it loads models and warms up.
    for number, fragment in enumerate([chosen[0], *chosen]):
        decoded = pipeline.decode(Fragments.of([fragment]).table)
        decoded_bytes = decoded.nbytes // fragment.images
        row = infer(decoded)
        result = FragmentResult.from_arrow(pipeline.publish(row) if pipeline.publish else row)
        if result.failure is not None:
            raise FragmentsFailed(f"a sampled fragment of {fragment.path} fails: {result.failure}")
        if number:
            for stage, spent in result.seconds.items():
                seconds[stage] += spent  # type: ignore[assignment]
    startup = _process_seconds() - sum(seconds.values())
    images = sum(fragment.images for fragment in chosen)
    bytes_ = sum(entry.size for entry in scratch.find(stored)) if stored else 0
    each = {stage: float(spent) / images for stage, spent in seconds.items()}
    return CostSample(images, each, driver_bytes, startup, decoded_bytes, bytes_)


def preview(
    verb: str,
    folders: tuple[Folder, Folder],
    plan: Plan,
    pending: Fragments,
    sample: CostSample,
    place: Place,
) -> Preview:
    """Return what a job would do; `folders` are IMAGES and SCORES or MODEL."""
    lake, target = folders
    cpu_seconds = sum(sample.seconds.values()) * pending.images
    cpus = os.cpu_count() or 1
    startup = sample.startup_seconds
    work = cpu_seconds / cpus
    if place != "local" and pending:
        startup += _RAY_SECONDS
        # A fragment is in the network on one CPU, of those that score or embed.
        at_once = min(scoring_processes(cpus), len(pending))
        work = max(work, pending.images * _network_seconds(sample) / at_once)
    bytes_ = _bytes(lake, plan)
    largest = pc.max(pending.table.column("images")).as_py() or 0
    # decode holds pixels twice while it stacks them.
    beside = largest * (2 * sample.decoded_bytes + bytes_ // max(1, plan.images))
    return Preview(
        verb=verb,
        images_root=lake.root,
        target=target.root,
        groups=len(plan.groups),
        files=len(plan.kept.paths),
        fragments=len(plan.kept),
        images=plan.images,
        bytes=bytes_,
        fragments_done=len(plan.kept) - len(pending),
        fragments_pending=len(pending),
        images_pending=pending.images,
        sampled_images=sample.images,
        seconds_per_image=sample.seconds,
        cpu_seconds=cpu_seconds,
        place=place,
        cpus=cpus,
        startup_seconds=startup,
        seconds=startup + work,
        driver_bytes=sample.driver_bytes,
        worker_bytes=_peak_bytes() + beside,
        stored_bytes=sample.stored_bytes * pending.images // max(1, sample.images),
    )


def _network_seconds(sample: CostSample) -> float:
    """Return what an image costs in the stage that holds the network."""
    return sum(s for stage, s in sample.seconds.items() if stage in ("embed", "infer"))


def _process_seconds() -> float:
    """Return for how long this process has run."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        # Not on Linux: the imports are most of it, and they are on one core.
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def _middle(fragment: Fragment) -> Fragment:
    """Return a few rows of a fragment: its first may be of a split or a label of their own."""
    images = min(_SAMPLED_IMAGES, fragment.images)
    start = fragment.start + (fragment.images - images) // 2
    return replace(fragment, start=start, images=images)


def _bytes(lake: Folder, plan: Plan) -> int:
    """Return the size of the files that are kept, of each as much as of its rows."""
    sizes = {entry.name: entry.size for entry in list_tables(lake)}
    if plan.kept is plan.every:
        return sum(sizes[path] for path in plan.kept.paths)
    rows = {}
    for name, fragments in (("every", plan.every), ("kept", plan.kept)):
        summed = fragments.table.group_by("path").aggregate([("images", "sum")])
        paths, counts = summed.column("path").to_pylist(), summed.column("images_sum").to_pylist()
        rows[name] = dict(zip(paths, counts, strict=True))
    return sum(sizes[p] * count // rows["every"][p] for p, count in rows["kept"].items())


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
