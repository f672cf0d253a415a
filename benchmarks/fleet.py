r"""A fleet of small groups in one fit and one score run, against a run for each of them.

    python benchmarks/fleet.py WORK --groups 100 --images 20 --separate 10

WORK is for images (made here), models and scores. The groups are fitted and scored in one run on a
Ray of its own, and, one after the other, `--separate` of them in runs of their own, whose time is
scaled up to all. Every run is a process, imports and the start of Ray in its time, as a scheduler
pays for them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    """Make the images, run both ways, and print the ratios."""
    arguments = _arguments()
    pictures, lake = arguments.work / "pictures", arguments.work / "images"
    shutil.rmtree(arguments.work, ignore_errors=True)
    for group in range(arguments.groups):
        _write_group(pictures / f"station-{group:03}", group, arguments.images)
    _patchlake("ingest", str(pictures), str(lake), "--layout", "mvtec", "--runner", "local")
    fitted, scored = _both(lake, arguments.work / "fleet", arguments)
    alone = [
        _both(lake / f"g=station-{group:03}", arguments.work / f"alone-{group}", arguments)
        for group in range(arguments.separate)
    ]
    scale = arguments.groups / arguments.separate
    fits, scores = (scale * sum(seconds) for seconds in zip(*alone, strict=True))
    print(f"{arguments.groups} groups of {arguments.images} images, {os.cpu_count()} cores")
    print(
        f"  fit:   one run {fitted:.1f} s, separate runs ~{fits:.0f} s, {fits / fitted:.1f} times"
    )
    print(f"  score: one run {scored:.1f} s, separate ~{scores:.0f} s, {scores / scored:.1f} times")


def _both(lake: Path, folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of a fit and a score run."""
    model, scores = str(folder / "model"), str(folder / "scores")
    settings = ["--set", f"backbone.name={arguments.backbone}"]
    settings += ["--weights", str(arguments.weights)]
    on_ray = ("--runner", "ray")
    fitted = _patchlake("fit", str(lake), model, *settings, *on_ray)
    scored = _patchlake("score", str(lake), model, scores, "--heatmaps", "none", *on_ray)
    return fitted, scored


def _patchlake(*command: str) -> float:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "patchlake", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - begin


def _write_group(folder: Path, seed: int, count: int) -> None:
    """Write images of one look, with noise."""
    rng = np.random.default_rng(seed)
    look = rng.integers(60, 200, (8, 8, 3))
    good = folder / "train" / "good"
    good.mkdir(parents=True)
    for number in range(count):
        pixels = np.kron(look, np.ones((32, 32, 1))) + rng.normal(0, 8, (256, 256, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(good / f"{number:03}.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--separate", type=int, default=10, help="groups with runs of their own")
    parser.add_argument("--backbone", default="resnet18.tv_in1k")
    parser.add_argument("--weights", default="untrained")
    return parser.parse_args()


if __name__ == "__main__":
    main()
