r"""Compare backbones by the commands that a user types: fit, score and evaluate of labelled images.

    python benchmarks/backbones.py WORK tile=FOLDER hazelnut=FOLDER --backbone lite0 lite1 \
        resnet18.tv_in1k=resnet18.safetensors

FOLDER has a product in MVTec layout. A backbone may have a file of weights behind an equals sign.
One process at a time, on all cores: seconds of each command,
start included, images a second of the score with heatmaps, and peak memory of its process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the commands, and print a line for each product and backbone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("products", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--backbone", nargs="+", default=["lite0"], metavar="NAME[=WEIGHTS]")
    parser.add_argument("--fit", default="", help="further words of `fit`, in one text")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    print(
        f"{'product':<12}{'backbone':<24}{'image':>7}{'pixel':>7}{'AUPRO':>7}"
        f"{'fit s':>8}{'score s':>9}{'img/s':>7}{'MiB':>7}"
    )
    for product in arguments.products:
        name, _, folder = product.partition("=")
        lake = arguments.work / name
        _run("ingest", folder, lake, "--group", name)
        for given in arguments.backbone:
            backbone, _, weights = given.partition("=")
            model, scores = lake.with_suffix(".model"), lake.with_suffix(".scores")
            for old in (model, scores):
                shutil.rmtree(old, ignore_errors=True)
            own = ["--weights", weights] if weights else []
            fit = ["--backbone", backbone, *own, *arguments.fit.split()]
            fit_s, _, _ = _run("fit", lake, model, *fit)
            score_s, peak, _ = _run("score", lake, model, scores, *own)
            _, _, said = _run("evaluate", lake, scores, "--json")
            metrics = json.loads(said)["groups"][name]
            [summary] = (json.loads(p.read_text()) for p in scores.glob("_runs/*/summary.json"))
            print(
                f"{name:<12}{backbone:<24}{metrics['image_auroc']:>7.3f}"
                f"{metrics['pixel_auroc']:>7.3f}{metrics['aupro']:>7.3f}{fit_s:>8.1f}"
                f"{score_s:>9.1f}{summary['images'] / score_s:>7.1f}{peak:>7.0f}",
                flush=True,
            )


def _run(*words: object) -> tuple[float, float, str]:
    """Return the seconds of a command, the MiB of its process at its peak, and its stdout."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "patchlake", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024, said


if __name__ == "__main__":
    main()
