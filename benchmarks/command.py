r"""Time `patchlake score` as a user types it, of this checkout and of another one, in turns.

    git worktree add ../before COMMIT
    python benchmarks/command.py IMAGES MODEL WORK --against ../before --rounds 5

Seconds of the whole command, start included, on all cores: medians over the rounds, with heatmaps
and without, and how many times faster this checkout is. Both run in this environment; a checkout
is chosen by PYTHONPATH. MODEL must be of a format that both read, or the other one has its own,
fitted by it on the same images (`--other-model`).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the commands in turns, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--other-model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runner", default="local", choices=["local", "ray"])
    arguments = parser.parse_args()
    checkouts = {"this": _HERE, "other": arguments.against.resolve()}
    models = {"this": arguments.model, "other": arguments.other_model or arguments.model}
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds):
        for heatmaps in ("all", "none"):
            # Another order each round: whoever comes second finds the files in memory.
            names = sorted(checkouts, reverse=bool(number % 2))
            for name in names:
                took = _score(arguments, checkouts[name], models[name], heatmaps)
                seconds.setdefault((heatmaps, name), []).append(took)
    for heatmaps in ("all", "none"):
        this, other = (statistics.median(seconds[heatmaps, name]) for name in ("this", "other"))
        print(
            f"heatmaps {heatmaps:<5} this {this:6.1f} s, other {other:6.1f} s: "
            f"{other / this:.2f} times faster  {seconds[heatmaps, 'this']} "
            f"{seconds[heatmaps, 'other']}"
        )


def _score(arguments: argparse.Namespace, checkout: Path, model: Path, heatmaps: str) -> float:
    scores = arguments.work / "scores"
    shutil.rmtree(scores, ignore_errors=True)
    words = [arguments.images, model, scores, "--heatmaps", heatmaps]
    command = [sys.executable, "-m", "patchlake", "score", *map(str, words)]
    begin = time.perf_counter()
    subprocess.run(
        [*command, "--runner", arguments.runner],
        env=os.environ | {"PYTHONPATH": str(checkout / "src")},
        check=True,
        capture_output=True,
    )
    return round(time.perf_counter() - begin, 1)


if __name__ == "__main__":
    main()
