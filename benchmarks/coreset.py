r"""Coreset selection: ours against the peers' own code, on real features.

    python benchmarks/coreset.py FEATURES.npy --anomalib SITE --patchcore SRC --rows 156800 \
        --fraction 0.01 --repeats 3

FEATURES.npy is a float32 array (patches, dim), for example written by `benchmarks/features.py`.
SITE is a folder that holds the package `anomalib` (site-packages, an unpacked wheel, or `src` of a
checkout); SRC one that holds `patchcore`. Their sampler modules are loaded from there as they are.

Every run is a process of its own that loads the rows and then selects, with the same number of
threads for all; contenders take turns, and the medians and their ratios are printed. Ours selects
in all dimensions; the peers project first, which is inside their time as it is inside their fit.
`--peer-steps N` stops the peers' loops after N picks and scales the time of the loop up, for cells
that would take them a quarter of an hour: such figures are marked with ~.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

STUBS = ["anomalib", "anomalib.models", "anomalib.models.components"]
STUBS += [f"{STUBS[-1]}.{name}" for name in ("sampling", "dimensionality_reduction")]


Select = Callable[[np.ndarray, int, int, int], list[int]]


def load_ours() -> Select:
    """Exact greedy in all dimensions."""
    from patchlake.pipeline.maths.coreset import greedy

    def select(rows: np.ndarray, size: int, _steps: int, start: int) -> list[int]:
        threads = len(os.sched_getaffinity(0))
        return greedy(rows, size, start=start, threads=threads).indices.tolist()

    return select


def load_anomalib() -> Select:
    """KCenterGreedy of anomalib: sparse projection, then one pass a pick."""
    import torch

    # Only the sampler's own modules: the packages' __init__ would import all of anomalib.
    for name in STUBS:
        stub = types.ModuleType(name)
        stub.__path__ = [str(Path(os.environ["PEER"], *name.split(".")))]
        sys.modules[name] = stub
    projection = importlib.import_module(f"{STUBS[-1]}.random_projection")
    sys.modules[STUBS[-1]].SparseRandomProjection = (  # type: ignore[attr-defined]
        projection.SparseRandomProjection
    )
    module = importlib.import_module(f"{STUBS[-2]}.k_center_greedy")

    def select(rows: np.ndarray, size: int, steps: int, _start: int) -> list[int]:
        torch.manual_seed(0)
        sampler = module.KCenterGreedy(torch.from_numpy(rows), size / len(rows) + 1e-12)
        sampler.coreset_size = min(size, steps)
        return list(sampler.select_coreset_idxs())

    return select


def load_patchcore() -> Select:
    """The authors' approximate sampler: 10 starting points, 128 dimensions."""
    import torch

    sys.path.insert(0, os.environ["PEER"])
    module = importlib.import_module("patchcore.sampler")

    def select(rows: np.ndarray, size: int, steps: int, _start: int) -> list[int]:
        torch.manual_seed(0)
        taken = min(size, steps) / len(rows) + 1e-12
        sampler = module.ApproximateGreedyCoresetSampler(taken, torch.device("cpu"))
        with torch.no_grad():
            reduced = sampler._reduce_features(torch.from_numpy(rows))  # noqa: SLF001
            return sampler._compute_greedy_coreset_indices(reduced).tolist()  # noqa: SLF001

    return select


CONTENDERS = {"ours": load_ours, "anomalib": load_anomalib, "patchcore": load_patchcore}


def run_one(arguments: argparse.Namespace) -> None:
    """Select once in this process; print a JSON line."""
    rows = np.load(arguments.features, mmap_mode="r")[: arguments.rows].copy()
    size = int(len(rows) * arguments.fraction)
    select = CONTENDERS[arguments.one]()
    before = _forget_peak()
    started = time.perf_counter()
    indices = select(rows, size, arguments.peer_steps or size, arguments.start)
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM")
    done = {"seconds": seconds, "indices": indices, "added": peak - before, "rows": rows.nbytes}
    sys.stdout.write(json.dumps(done) + "\n")


def _forget_peak() -> int:
    """Set this process's peak memory to its present one (Linux), and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def spawn(name: str, peer: str | None, command: list[str]) -> dict[str, object]:
    """Run one contender in a fresh process."""
    environment = os.environ | {"PEER": peer or ""}
    program = [sys.executable, __file__, *command, "--one", name]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace, command: list[str]) -> None:
    """Run the contenders in turn and print medians, ratios, memory and agreement."""
    peers = {"ours": None, "anomalib": arguments.anomalib, "patchcore": arguments.patchcore}
    names = [name for name in peers if name == "ours" or peers[name]]
    runs: dict[str, list[dict]] = {name: [] for name in names}  # type: ignore[type-arg]
    for _ in range(arguments.repeats):
        for name in names:
            runs[name].append(spawn(name, peers[name], command))
    size = int(arguments.rows * arguments.fraction)
    ours = statistics.median(run["seconds"] for run in runs["ours"])
    kernel = os.environ.get("OPENBLAS_CORETYPE")
    print(f"{arguments.rows} rows, {size} picks, OPENBLAS_CORETYPE={kernel}")
    for name in names:
        seconds = statistics.median(run["seconds"] for run in runs[name])
        picks = len(runs[name][0]["indices"])
        scaled = seconds * size / picks
        mark = "~" if picks < size else ""
        added = max(run["added"] for run in runs[name]) / runs[name][0]["rows"]
        print(
            f"  {name:10} {mark}{scaled:9.2f} s  {mark}{scaled / ours:7.1f} x ours  "
            f"memory beside the rows: {added:.2f} x their size"
        )
    if arguments.oracle:
        _check(arguments, runs["ours"][0]["indices"])


def _check(arguments: argparse.Namespace, indices: list[int]) -> None:
    """Hold our sequence against a plain float64 loop, one centre at a time.

    By |x|^2 + |c|^2 - 2 x.c of centred rows, which errs by at most dim 2^-53 of |x||c|: 1e-13.
    """
    rows = np.load(arguments.features, mmap_mode="r")[: arguments.rows].astype(np.float64)
    rows -= rows.mean(axis=0)
    squared = np.einsum("nd,nd->n", rows, rows)
    nearest = np.full(len(rows), np.inf)
    worst = 0.0
    exact = 0
    for number, index in enumerate(indices):
        if number:
            farthest = nearest.max()
            exact += int(nearest.argmax() == index)
            worst = max(worst, 1 - np.sqrt(nearest[index] / farthest))
        distances = squared + squared[index] - 2 * (rows @ rows[index])
        np.minimum(nearest, np.maximum(distances, 0), out=nearest)
    print(
        f"  float64 loop: {exact} of {len(indices) - 1} picks the same; the others lie at most "
        f"{worst:.1e} below the farthest row"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features")
    parser.add_argument("--rows", type=int, default=78_400)
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--anomalib")
    parser.add_argument("--patchcore")
    parser.add_argument("--peer-steps", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--oracle", action="store_true", help="compare with a float64 loop")
    parser.add_argument("--one", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments)
    else:
        compare(arguments, sys.argv[1:])


if __name__ == "__main__":
    main()
