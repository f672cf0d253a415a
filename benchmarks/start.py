"""What a command costs before it does anything: seconds, processor seconds, and memory at its peak.

python benchmarks/start.py SCORES
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "score --help": ["score", "--help"],
    "a usage error": ["score", "--bogus"],
    "status": ["status"],
}


def cost(arguments: list[str]) -> tuple[float, float, float]:
    """Return the seconds, processor seconds and MB of one run of the command line."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "patchlake", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    # Linux counts the peak in KiB.
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Parse, run each command in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", help="a score table, for `status`")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.runs):
        for name, command in COMMANDS.items():
            found[name].append(cost([*command, *([arguments.scores] if name == "status" else [])]))
    print(f"{'command':15} {'s':>6} {'CPU s':>6} {'MB':>5}")
    for name, runs in found.items():
        seconds, used, peak = map(statistics.median, zip(*runs, strict=True))
        print(f"{name:15} {seconds:6.2f} {used:6.2f} {peak:5.0f}")


if __name__ == "__main__":
    main()
