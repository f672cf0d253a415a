r"""How busy `patchlake score` keeps the cores: the command's seconds beside what its work takes.

    python benchmarks/pipeline.py IMAGES MODEL WORK --rounds 3

The machine must be idle: processor time is that of the whole machine (/proc/stat), because Ray's
workers are no children of the command. For each runner, with heatmaps and without, medians over
the rounds, in turns:

* seconds of the command from start to end, and images a second of them;
* processor seconds divided by the cores: the command cannot be faster than that;
* the quotient of the two;
* the same from the first scored image to the last, without what is before and behind: the start of
  Python, the imports, the plan, the weights;
* milliseconds an image and stage, as `_runs/<run>/summary.json` has them (wall time in a stage, on
  all threads together, so that on busy cores it is more than the processor time).
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PASSED = re.compile(r"score: (\d+) of \d+ images")


@dataclass(frozen=True)
class Run:
    """One run of the command: seconds of wall and of all processors, whole and of the middle."""

    images: int
    wall: float
    busy: float
    middle_wall: float
    middle_busy: float
    stages: dict[str, float]


def main() -> None:
    """Print a line for each runner and each kind of output."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runners", nargs="+", default=["local", "ray"])
    arguments = parser.parse_args()
    runs: dict[tuple[str, str], list[Run]] = {}
    for _ in range(arguments.rounds):
        for runner in arguments.runners:
            for heatmaps in ("all", "none"):
                runs.setdefault((runner, heatmaps), []).append(_run(arguments, runner, heatmaps))
    for (runner, heatmaps), found in runs.items():
        print(f"{runner:<6} heatmaps {heatmaps:<5} {_in_words(found)}")


def _in_words(runs: list[Run]) -> str:
    cores = os.cpu_count() or 1
    wall = statistics.median(run.wall for run in runs)
    busy = statistics.median(run.busy for run in runs) / cores
    middle = statistics.median(
        run.middle_wall / (run.middle_busy / cores) for run in runs if run.middle_busy
    )
    stages = {name: statistics.median(run.stages[name] for run in runs) for name in runs[0].stages}
    each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
    return (
        f"{wall:6.1f} s, {runs[0].images / wall:5.1f} images/s; work {busy:6.1f} s on each of "
        f"{cores} cores: {wall / busy:.2f}, without start and end {middle:.2f}; "
        f"ms an image: {each}"
    )


def _run(arguments: argparse.Namespace, runner: str, heatmaps: str) -> Run:
    scores = arguments.work / "scores"
    shutil.rmtree(scores, ignore_errors=True)
    words = [arguments.images, arguments.model, scores, "--heatmaps", heatmaps, "--runner", runner]
    command = [sys.executable, "-m", "patchlake", "score", *map(str, words)]
    begin, busy = time.perf_counter(), _busy()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    seen: list[tuple[float, float]] = []
    for line in process.stderr:
        found = _PASSED.search(line)
        if found and int(found[1]):
            seen.append((time.perf_counter(), _busy()))
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    wall, busy = time.perf_counter() - begin, _busy() - busy
    (summary,) = (json.loads(path.read_text()) for path in scores.glob("_runs/*/summary.json"))
    images = sum(summary["statuses"].values())
    stages = {name: 1000 * seconds / images for name, seconds in summary["stage_seconds"].items()}
    middle = (seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]) if seen else (0.0, 0.0)
    return Run(images, wall, busy, *middle, stages)


def _busy() -> float:
    """Return the seconds that all processors have worked since the machine was started."""
    user, nice, system, _idle, _io, irq, soft, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / _TICKS


if __name__ == "__main__":
    main()
