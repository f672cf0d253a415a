"""Fuzzing with real processes: a case may raise what its target promises, and nothing else.

    python -m tests.fuzz.where --seconds 600 [--seed 0]

A case is a number: the same seed and number make the same input. Cases run in a child process with
a limit on its memory, which is started again when it dies, and a case that takes longer than
`EACH_S` is killed with it. Each finding is printed with the command that repeats it.
"""

import argparse
import importlib
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

EACH_S = 20.0
MEMORY_BYTES = 4 * 2**30
# Cases of one child: a start costs the imports of the target.
_CASES = 2000

# A case: raises nothing, or the finding. It is given its own random numbers.
Case = Callable[[random.Random], None]


def main(module: str, case: Case, prepare: Callable[[], None] | None = None) -> None:
    """Run a fuzz target's command line; the exit code is 1 where something was found.

    `prepare` makes what the cases share, once, before the clock starts; the children find it by
    their environment.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run just this one, in this process")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        _run_cases(case, asked.seed, *asked.child)
        return
    if prepare is not None:
        prepare()
    if asked.case is not None:
        case(random.Random(f"{asked.seed}/{asked.case}"))
        return
    cases, findings = fuzz(module, asked.seconds, asked.seed)
    print(f"{module}: {cases} cases of seed {asked.seed}, {len(findings)} findings")
    sys.exit(1 if findings else 0)


def fuzz(module: str, seconds: float, seed: int) -> tuple[int, list[int]]:
    """Run cases of a target module for some seconds; return how many, and those that failed."""
    findings: list[int] = []
    begin, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        begin = _child(module, seed, begin, until, findings)
    return begin, findings


def _child(module: str, seed: int, begin: int, until: float, findings: list[int]) -> int:
    """Run cases from a number on in one child; return the number of the next."""
    command = [sys.executable, "-m", module, "--seed", str(seed)]
    command += ["--child", str(begin), str(begin + _CASES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        at = begin
        try:
            while True:
                line = _line(child, EACH_S + (30 if at == begin else 0))
                if line is None:
                    found = f"case {at} takes longer than {EACH_S:.0f} s"
                elif line.startswith("done"):
                    at += 1
                    if at == begin + _CASES or time.monotonic() > until:
                        return at
                    continue
                elif line:
                    found = f"case {at}: {line.strip()}"
                else:
                    found = f"case {at} ended the process with {child.wait()}"
                findings.append(at)
                print(f"{found}; again: python -m {module} --seed {seed} --case {at}", flush=True)
                at += 1
                if not line or not line.startswith("found"):
                    return at
        finally:
            child.kill()


def _line(child: subprocess.Popen[str], seconds: float) -> str | None:
    """Return the next line, empty at the end, or None where none comes in time."""
    import threading

    assert child.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(child.stdout.readline()), daemon=True)
    reader.start()
    reader.join(seconds)
    if not lines and os.getloadavg()[0] > (os.cpu_count() or 1):
        # Others work here too: what is slow for that reason is no finding.
        reader.join(4 * seconds)
    return lines[0] if lines else None


def _run_cases(case: Case, seed: int, begin: int, end: int) -> None:
    # Beyond the address space that the libraries of the target have taken: torch alone maps 4 GiB.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
    for number in range(begin, end):
        try:
            case(random.Random(f"{seed}/{number}"))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            print(f"found {type(error).__name__} at {at}: {error!s:.200}".replace("\n", " "))
        else:
            print("done")
        sys.stdout.flush()


def target(name: str) -> Case:
    """Return the case of a module of this folder, for a short run in the tests."""
    found: Case = importlib.import_module(f"tests.fuzz.{name}").case
    return found
