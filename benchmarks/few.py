r"""Few good images: what a model of 1 to 16 of them finds, and what its verdicts promise and keep.

    python benchmarks/few.py IMAGES WORK --method patchcore --sizes 1 2 4 8 16 --draws 3

IMAGES is an images table of one group, with labels and splits. Of its good training images so many
are drawn, and the model scores all test images. Printed for each size, as means over the draws:
image AUROC, AUPRO, the rate that is promised (1 / (parts + 1), or the setting), the share of good
and of defective test images that are called anomalous, and how many of the models give verdicts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import patchlake


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--method", default="patchcore")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args(words)
    table = ds.dataset(arguments.images, partitioning=None).to_table().sort_by("image_id")
    is_test = pc.equal(table.column("split"), "test")
    test, training = table.filter(is_test), table.filter(pc.invert(is_test))
    training = training.filter(pc.equal(training.column("label"), "good"))
    for size in arguments.sizes:
        found = []
        for draw in range(arguments.draws):
            chosen = np.random.default_rng(draw).permutation(len(training))[:size]
            lake = arguments.work / f"images-{size}-{draw}"
            lake.mkdir(parents=True, exist_ok=True)
            mixed = pa.concat_tables([training.take(pa.array(np.sort(chosen))), test])
            pq.write_table(mixed, lake / "images.parquet")
            found.append(_measured(lake, Path(f"{lake}-{arguments.method}"), arguments.method))
        print(f"{arguments.method:<12} {size:>3} images: {_line(found)}", flush=True)


def _measured(lake: Path, work: Path, method: str) -> dict[str, float]:
    flags = {"method": {"name": method}, "score": {"heatmaps": "none"}}
    settings = patchlake.load_settings(flags=flags)
    manifest = patchlake.fit(lake, f"{work}-model", settings=settings)
    (record,) = manifest.groups.values()
    scores = f"{work}-scores"
    patchlake.score(lake, f"{work}-model", scores, settings=settings, where="split = 'test'")
    (metrics,) = patchlake.evaluate(lake, scores).values()
    promised = float(record.facts.get("smallest_false_alarm_rate", np.nan))
    named = {name: metrics[name] for name in ("image_auroc", "aupro", "false_alarm_rate", "recall")}
    found = {name: np.nan if value is None else float(value) for name, value in named.items()}
    return found | {"promised": max(promised, settings.verdict.false_alarm_rate)}


def _line(found: Sequence[dict[str, float]]) -> str:
    def mean(name: str) -> float:
        values = np.array([one[name] for one in found])
        return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan

    judged = sum(np.isfinite(one["recall"]) for one in found)
    return (
        f"image AUROC {mean('image_auroc'):.3f}, AUPRO {mean('aupro'):.3f}, promised "
        f"{mean('promised'):.3f}, good ones called {mean('false_alarm_rate'):.3f}, defective ones "
        f"{mean('recall'):.3f}, {judged} of {len(found)} with verdicts"
    )


if __name__ == "__main__":
    main()
