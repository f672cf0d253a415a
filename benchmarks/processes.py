"""One command, run as a process: how long it takes, and how much memory it holds at most.

Memory is that of the process and of all that it starts (Ray's workers and daemons, loaders of
data), together: once a second the proportional set sizes (PSS) are added, which count a page that
several share once. A peak between two looks is missed. Linux only.
"""

import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A look walks the page tables of all processes: some milliseconds a gigabyte.
_LOOK_S = 1.0


@dataclass(frozen=True)
class Ran:
    """What a command took, and said on its standard output."""

    seconds: float
    peak_mib: float
    output: str
    # Of all processors, by the command and all that it waited for. Other work on the machine makes
    # `seconds` longer, and hardly changes these.
    processor_seconds: float


def run(command: Sequence[str], environment: Mapping[str, str]) -> Ran:
    """Return what the command took, its start included.

    Raises:
        SystemExit: if it fails, with the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begin, used = time.perf_counter(), _used()
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=errors)
        watch = _Watch(process.pid)
        status = process.wait()
        seconds = time.perf_counter() - begin
        peak = watch.end()
        output.seek(0)
        errors.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {status}:\n{errors.read()[-3000:]}")
        return Ran(seconds, peak, output.read(), _used() - used)


def _used() -> float:
    """Return the processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turns(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]],
    rounds: int,
    *,
    check: Callable[[str], None],
) -> dict[str, list[Ran]]:
    """Return what each command took in each round.

    Every second round has the opposite order: whoever comes second finds files in memory.

    Args:
        commands: By name, the words of a command and its environment.
        rounds: How often each is run.
        check: Is called with the name after each run; it looks at what was written and removes it.
    """
    runs: dict[str, list[Ran]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in sorted(commands, key=list(commands).index, reverse=bool(number % 2)):
            runs[name].append(run(*commands[name]))
            check(name)
            print(f"round {number + 1}: {name}: {runs[name][-1].seconds:.1f} s", flush=True)
    return runs


def medians(runs: Sequence[Ran]) -> tuple[float, float]:
    """Return the median seconds and the median peak of memory in MiB."""
    return (
        statistics.median(one.seconds for one in runs),
        statistics.median(one.peak_mib for one in runs),
    )


def environment(*import_paths: Path) -> dict[str, str]:
    """Return this process's environment, with these import paths, and no Ray but a new one."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, import_paths))}
    return kept | paths | {"RAY_AUTH_MODE": "disabled"}


class _Watch:
    """Looks at the memory of a process and its descendants until `end`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Return the most MiB that were seen."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            held = sum(_proportional_mib(pid) for pid in _descendants(self._pid))
            self._peak = max(self._peak, held)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name) state parent ...", where the name may have brackets and spaces.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _proportional_mib(pid: int) -> float:
    """Return the proportional set size; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
