"""The papers' presets on MVTec AD, whole: means over its categories, and one row each.

    python benchmarks/mvtec.py mvtec_anomaly_detection WORK

The first argument is the extracted data set, a folder with a folder in MVTec layout for each of its
15 categories; WORK is for lake, models and scores, and what is there already is not done again. The
weights come from the timm hub. The figures belong beside those of docs/benchmarks.md, which were
published; what the presets do is in `pipeline/presets.py`.
"""

import argparse
from pathlib import Path
from statistics import mean

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate, fit, ingest, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.sources.sources import Arrangement

METRICS = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    """Ingest once; fit, score and evaluate each preset."""
    arguments = _arguments()
    execution = Execution(arguments.runner, None)
    images = arguments.work / "images"
    plain = load_settings("", arguments.set)
    if not images.exists():
        ingest.run(str(arguments.mvtec), str(images), Arrangement("mvtec"), plain, execution)
    tables = {}
    for preset in arguments.presets:
        flags = {"preset": preset, "score": {"heatmaps": "none"}}
        settings = load_settings("", arguments.set, flags)
        model, scores = (arguments.work / f"{kind}-{preset}" for kind in ("model", "scores"))
        try:
            fit.run(str(images), str(model), settings, execution)
            score.run(str(images), str(model), str(scores), settings, execution)
        except ConfigError as error:
            # Of the presets, one may need weights that are not to be had.
            print(f"{preset}: {error}", flush=True)
            continue
        tables[preset] = evaluate.run(str(images), str(scores))
        _print_categories(preset, tables[preset])
    print("\n| preset | image AUROC | pixel AUROC | AUPRO |\n|---|---|---|---|")
    for preset, groups in tables.items():
        _print_row(preset, [_mean([group[name] for group in groups.values()]) for name in METRICS])


def _print_categories(preset: str, groups: dict[str, evaluate.Metrics]) -> None:
    print(f"\n| {preset} | image AUROC | pixel AUROC | AUPRO |\n|---|---|---|---|")
    for name, metrics in groups.items():
        _print_row(name, [metrics[metric] for metric in METRICS])


def _print_row(name: str, values: list[float | None]) -> None:
    told = ("" if value is None else f"{100 * value:.1f}" for value in values)
    print(f"| {name} | {' | '.join(told)} |", flush=True)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mvtec", type=Path, help="the extracted data set")
    parser.add_argument("work", type=Path)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--runner", choices=["local", "ray"], default="local")
    return parser.parse_args()


if __name__ == "__main__":
    main()
