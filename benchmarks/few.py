r"""Few good images: what a model of 1 to 16 of them finds, turned or not, and what it promises.

    python benchmarks/few.py IMAGES WORK --sizes 1 2 4 8 16 --draws 5 \
        --set method.rotations=1 method.coreset_fraction=1 \
        --set method.rotations=8 method.coreset_fraction=1

IMAGES is an images table of one group, with labels and splits. Of its good training images so many
are drawn, the same ones for each `--set`, and the model scores the test images. A line for each
size and `--set`, with means over the draws and their standard deviation: image AUROC, pixel AUROC,
AUPRO; the rate that is promised (1 / (parts + 1), or the setting), the share of good and of
defective test images that are called anomalous, and how many of the models give verdicts; then what
a `--set` changes beside the first, draw by draw, with the standard error of its mean.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import patchlake

METRICS = ("image_auroc", "pixel_auroc", "aupro")
VERDICTS = ("promised", "false_alarm_rate", "recall")


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each size and each settings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--set", nargs="+", action="append", help="settings, of all runs of a line")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="one test image of so many, by label")
    arguments = parser.parse_args(words)
    test, training = _images(arguments.images, arguments.every)
    variants = arguments.set or [["method.name=patchcore"]]
    print(f"| images | settings | {' | '.join((*METRICS, *VERDICTS))} | with verdicts |")
    print(f"|{'---|' * 9}", flush=True)
    for size in arguments.sizes:
        found: list[list[dict[str, float]]] = [[] for _ in variants]
        for draw in range(arguments.draws):
            chosen = np.random.default_rng(draw).permutation(len(training))[:size]
            lake = arguments.work / "images"
            shutil.rmtree(lake, ignore_errors=True)
            lake.mkdir(parents=True)
            mixed = pa.concat_tables([training.take(pa.array(np.sort(chosen))), test])
            pq.write_table(mixed, lake / "images.parquet")
            for variant, assignments in enumerate(variants):
                found[variant].append(_measured(lake, arguments.work, assignments))
        for assignments, some in zip(variants, found, strict=True):
            print(_line(size, assignments, some), flush=True)
        for assignments, some in zip(variants[1:], found[1:], strict=True):
            print(_change(size, assignments, found[0], some), flush=True)


def _images(lake: Path, every: int) -> tuple[pa.Table, pa.Table]:
    """Return test images, thinned label by label, and good training images."""
    table = ds.dataset(lake, partitioning=None).to_table().sort_by("image_id")
    is_test = pc.equal(table.column("split"), "test")
    test, training = table.filter(is_test), table.filter(pc.invert(is_test))
    labels = test.column("label").to_pylist()
    seen: dict[str, int] = {}
    ranks = [seen[label] for label in labels if not seen.update({label: seen.get(label, -1) + 1})]
    test = test.filter(pa.array([rank % every == 0 for rank in ranks]))
    return test, training.filter(pc.equal(training.column("label"), "good"))


def _measured(lake: Path, work: Path, assignments: Sequence[str]) -> dict[str, float]:
    settings = patchlake.load_settings(
        assignments=assignments, flags={"score": {"heatmaps": "none"}}
    )
    model, scores = work / "model", work / "scores"
    for folder in (model, scores):
        shutil.rmtree(folder, ignore_errors=True)
    manifest = patchlake.fit(lake, model, settings=settings)
    (record,) = manifest.groups.values()
    patchlake.score(lake, model, scores, settings=settings, where="split = 'test'")
    (metrics,) = patchlake.evaluate(lake, scores).values()
    promised = float(record.facts.get("smallest_false_alarm_rate", np.nan))
    named = {name: metrics[name] for name in (*METRICS, "false_alarm_rate", "recall")}
    found = {name: np.nan if value is None else float(value) for name, value in named.items()}
    return found | {"promised": max(promised, settings.verdict.false_alarm_rate)}


def _line(size: int, assignments: Sequence[str], found: Sequence[dict[str, float]]) -> str:
    values = {name: np.array([one[name] for one in found]) for name in (*METRICS, *VERDICTS)}
    spread = [f"{values[name].mean():.3f} +- {values[name].std(ddof=1):.3f}" for name in METRICS]
    rates = []
    for name in VERDICTS:
        known = values[name][np.isfinite(values[name])]
        rates.append(f"{known.mean():.3f}" if len(known) else "-")
    judged = int(np.isfinite(values["recall"]).sum())
    told = " | ".join((*spread, *rates))
    return f"| {size} | `{' '.join(assignments)}` | {told} | {judged} of {len(found)} |"


def _change(
    size: int,
    assignments: Sequence[str],
    first: Sequence[dict[str, float]],
    found: Sequence[dict[str, float]],
) -> str:
    told = []
    for name in METRICS:
        changes = [one[name] - other[name] for one, other in zip(found, first, strict=True)]
        error = np.std(changes, ddof=1) / np.sqrt(len(changes))
        told.append(f"{np.mean(changes):+.3f} +- {error:.3f}")
    return f"| {size} | change by `{' '.join(assignments)}` | {' | '.join(told)} | | | | |"


if __name__ == "__main__":
    main()
