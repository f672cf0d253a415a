"""Peak memory of the driver and of every worker, for fits and scores of growing size.

python benchmarks/memory.py WORK --weights mobilenetv2_100.safetensors --sizes 500 2000 8000 20000

Draws the images (224 x 224 JPEG, each of its own noise), and runs `patchlake fit` and `score` on
Ray as a user would. Every 0.2 s the process tree is read from /proc (so Linux only). `rss` is all
that is resident in a process; in it `own` is its heap, which nobody else has, `store` are pages of
Ray's object store that it has touched: all processes have the same ones, however often they are
counted, and Ray bounds them. The rest are libraries.
"""

import argparse
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_FILE_IMAGES = 500
_SIDE, _COARSE = 224, 14
_EVERY_S = 0.2


def draw(folder: Path, count: int) -> None:
    """Write files of 500 images each: a pattern of the product, and noise of the image."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(0).integers(60, 200, (_COARSE, _COARSE, 3))
    for number in range(-(-count // _FILE_IMAGES)):
        target = folder / f"images-{number:05d}.parquet"
        if target.exists():
            continue
        rng = np.random.default_rng(number + 1)
        noise = rng.normal(0, 12, (_FILE_IMAGES, _COARSE, _COARSE, 3))
        encoded = [_jpeg(np.clip(pattern + one, 0, 255).astype(np.uint8)) for one in noise]
        ids = [f"{number}-{row}" for row in range(_FILE_IMAGES)]
        columns = {"image_id": ids, "image": encoded, "group": ["product"] * _FILE_IMAGES}
        pq.write_table(pa.table(columns), target, row_group_size=100)


def _jpeg(coarse: np.ndarray) -> bytes:
    sink = io.BytesIO()
    picture = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    picture.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def lake_of(drawn: Path, folder: Path, count: int) -> Path:
    """Return a lake of the first images drawn, by hard links."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(drawn.glob("*.parquet"))[: count // _FILE_IMAGES]:
        target = folder / file.name
        if not target.exists():
            os.link(file, target)
    return folder


@dataclass
class Peaks:
    """Largest bytes seen in any process of a kind: by kind, then `rss`, `own` and `store`."""

    of: dict[str, dict[str, int]] = field(default_factory=dict)

    def watch(self, root: int, stop: threading.Event) -> None:
        """Sample the tree below a process until told to stop."""
        while not stop.wait(_EVERY_S):
            for pid in _tree(root):
                found = _resident(pid)
                if found is not None:
                    kind, sizes = ("driver" if pid == root else found[0]), found[1]
                    peaks = self.of.setdefault(kind, {})
                    for name, size in sizes.items():
                        peaks[name] = max(peaks.get(name, 0), size)


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [root]
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending += children.get(pid, [])
    return found


def _resident(pid: int) -> tuple[str, dict[str, int]] | None:
    """Return the kind and the bytes of a process, or None once it is gone."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = dict(line.split(":", 1) for line in lines)
    wanted = {"rss": "VmRSS", "own": "RssAnon", "store": "RssShmem"}
    if "VmRSS" not in fields:
        return None
    return _kind(title), {name: 1024 * int(fields[f].split()[0]) for name, f in wanted.items()}


def _kind(title: str) -> str:
    if not title.startswith("ray::"):
        return "ray itself"
    # Ray names a worker by the task that it does at the moment.
    return "actor" if "_Actor" in title or "MapWorker" in title else "task worker"


def measured(command: Sequence[str]) -> tuple[Peaks, float]:
    """Run a command of patchlake; return the peaks of its processes, and the seconds it took."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks, stop = Peaks(), threading.Event()
    watcher = threading.Thread(target=peaks.watch, args=(process.pid, stop))
    watcher.start()
    code = process.wait()
    stop.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} exits with {code}")
    return peaks, time.perf_counter() - started


def report(what: str, images: int, found: tuple[Peaks, float]) -> None:
    """Print a row of the table, in MiB: rss (own, store)."""
    peaks, seconds = found
    shown = []
    for kind, sizes in sorted(peaks.of.items()):
        rss, own, store = (sizes[name] // 2**20 for name in ("rss", "own", "store"))
        shown.append(f"{kind} {rss} ({own}, {store})")
    print(f"| {what} | {images} | {' | '.join(shown)} | {seconds:.0f} s |", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000, 8000, 20000])
    parser.add_argument("--backbone", default="mobilenetv2_100.ra_in1k")
    parser.add_argument("--weights", default="untrained")
    parser.add_argument("--memory-budget", type=int, default=128 * 2**20)
    parser.add_argument("--verbs", nargs="+", default=["fit", "score"])
    arguments = parser.parse_args()
    work: Path = arguments.work
    draw(work / "drawn", max(arguments.sizes))
    patchlake = [sys.executable, "-m", "patchlake"]
    budget = ["--runner", "ray", "--set", f"memory_budget={arguments.memory_budget}"]
    for size in arguments.sizes:
        lake = lake_of(work / "drawn", work / f"lake-{size}", size)
        model = work / f"model-{size}"
        fit = [*patchlake, "fit", str(lake), str(model), "--backbone", arguments.backbone]
        fit += ["--weights", arguments.weights, "--set", "method.max_bank_rows=2000", *budget]
        score = [*patchlake, "score", str(lake), str(model), str(work / f"scores-{size}")]
        score += ["--heatmaps", "none", *budget]
        for verb, command in (("fit", fit), ("score", score)):
            if verb in arguments.verbs:
                report(verb, size, measured(command))


if __name__ == "__main__":
    main()
