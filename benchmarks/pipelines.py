r"""`patchlake score` beside what people would write themselves with Ray Data or Daft, in turns.

    python benchmarks/pipelines.py IMAGES MODEL WORK --weights resnet18.safetensors \
        --daft SITE --rounds 5

IMAGES is a table that `patchlake ingest` has written, MODEL was fitted with ResNet-18 and this file
of weights. The peers are the published pipelines of Ray Data and of Daft (`pipeline_ray.py`,
`pipeline_daft.py`, which name their sources). They write an embedding of each image: of the network
up to layer 3, which is as far as PatchCore reads it, and of all of it. patchlake does more: it
compares 784 patches of each image with a memory bank, scores, and with `--heatmaps all` draws.

Each command is a process of its own, timed from its start to its end, imports and the start of Ray
included. SITE is a folder for Daft, by `pip install --target SITE daft`, because its requirements
differ from ours; it is left out where that is not installed. Printed are medians over the rounds:
images a second, and MiB of the command and all that it starts (`processes.py`).
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from networks import CUTS
from processes import environment, in_turns, medians

_HERE = Path(__file__).resolve().parent
_SOURCE = _HERE.parent / "src"

Commands = dict[str, tuple[Sequence[str], Mapping[str, str]]]


def main() -> None:
    """Run all in turns, and print a line for each."""
    arguments = _arguments()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    images = _rows(arguments.images)
    commands = _ours(arguments) | _ray_data(arguments) | _daft(arguments)
    found = in_turns(commands, arguments.rounds, check=lambda name: _check(arguments, name, images))
    print(f"{images} images, medians of {arguments.rounds}")
    for name, runs in found.items():
        seconds, peak = medians(runs)
        every = " ".join(f"{one.seconds:.1f}" for one in runs)
        print(f"{name:<34} {images / seconds:6.1f} images/s {peak:6.0f} MiB  (s: {every})")


def _ours(arguments: argparse.Namespace) -> Commands:
    commands: Commands = {}
    for runner in ("local", "ray"):
        for heatmaps in ("all", "none"):
            name = f"patchlake {runner}, heatmaps {heatmaps}"
            words = [arguments.images, arguments.model, _out(arguments, name)]
            words += ["--weights", arguments.weights, "--heatmaps", heatmaps, "--runner", runner]
            command = [sys.executable, "-m", "patchlake", "score", *map(str, words)]
            commands[name] = (command, environment(_SOURCE))
    return commands


def _ray_data(arguments: argparse.Namespace) -> Commands:
    return {
        name: (_pipeline("pipeline_ray.py", arguments, name, cut), environment())
        for cut in CUTS
        for name in [f"Ray Data, {cut}"]
    }


def _daft(arguments: argparse.Namespace) -> Commands:
    paths = environment(*([arguments.daft] if arguments.daft else []))
    asked = subprocess.run(
        [sys.executable, "-c", "import daft"], env=paths, capture_output=True, check=False
    )
    if asked.returncode:
        print("Daft is left out: it is not installed. pip install --target SITE daft, --daft SITE")
        return {}
    return {
        name: (_pipeline("pipeline_daft.py", arguments, name, cut), paths)
        for cut in CUTS
        for name in [f"Daft, {cut}"]
    }


def _pipeline(script: str, arguments: argparse.Namespace, name: str, cut: str) -> list[str]:
    words = [_HERE / script, arguments.images, _out(arguments, name)]
    return [sys.executable, *map(str, words), "--weights", str(arguments.weights), "--cut", cut]


def _out(arguments: argparse.Namespace, name: str) -> Path:
    out: Path = arguments.work / name.replace(", ", "-").replace(" ", "-")
    return out


def _check(arguments: argparse.Namespace, name: str, images: int) -> None:
    """Remove what a command wrote. Raises `SystemExit` if that is not a row for each image."""
    out = _out(arguments, name)
    written = _rows(out)
    if written != images:
        raise SystemExit(f"{name} wrote {written} rows of {images} images")
    shutil.rmtree(out)


def _rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="is emptied")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--daft", type=Path, help="folder in which Daft is installed")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
