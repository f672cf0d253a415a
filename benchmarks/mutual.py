r"""Mutual scoring of nights with few and with many defects, beside a model of good images.

    python benchmarks/mutual.py IMAGES WORK --defective 20 --draws 5
    python benchmarks/mutual.py IMAGES WORK --defective 388 --draws 1 --references 50 100 200

IMAGES is an images table of one group, with labels and splits. A night is its good test images,
with so many defective ones drawn beside them. It is scored by `patchlake.mutual`, once with each
number of references, and by a PatchCore model of all good training images. Printed for each, as
means over the draws with the least and the largest: image AUROC, pixel AUROC, AUPRO, and seconds,
of the fit and the score together, and of PatchCore of the score alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import patchlake

_SHOWN = ("image_auroc", "pixel_auroc", "aupro")


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each number of references, and one for PatchCore."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--defective", type=int, default=20)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--references", nargs="+", type=int, default=[50])
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--weights")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the method: name=value")
    arguments = parser.parse_args(words)
    table = ds.dataset(arguments.images, partitioning=None).to_table().sort_by("image_id")
    nights = [_night(table, arguments.defective, draw) for draw in range(arguments.draws)]
    backbone = {"name": arguments.backbone, "weights": arguments.weights}
    common = {"backbone": backbone, "score": {"heatmaps": "none"}}
    work = arguments.work
    for references in arguments.references:
        chosen = [f"method.{one}" for one in (f"references={references}", *arguments.set)]
        settings = patchlake.load_settings("", chosen, common)

        def compared(lake: Path, settings: patchlake.Settings = settings) -> Path:
            out = Path(f"{lake}-{time.time_ns()}")
            patchlake.mutual(lake, out / "model", out / "scores", settings=settings)
            return out / "scores"

        _show(f"musc, {references} references", work, nights, compared)
    settings, model = patchlake.load_settings("", (), common), work / "patchcore"
    good = work / "good"
    good.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.filter(pc.equal(table.column("split"), "train")), good / "images.parquet")
    patchlake.fit(good, model, settings=settings, overwrite=True)

    def scored(lake: Path) -> Path:
        out = Path(f"{lake}-{time.time_ns()}")
        patchlake.score(lake, model, out / "scores", settings=settings)
        return out / "scores"

    _show("patchcore, fitted on good ones", work, nights, scored)


def _night(table: pa.Table, defective: int, draw: int) -> pa.Table:
    """Return the good test images, and so many defective ones."""
    test = table.filter(pc.equal(table.column("split"), "test"))
    is_good = pc.equal(test.column("label"), "good")
    bad = test.filter(pc.invert(is_good))
    chosen = np.random.default_rng(draw).permutation(len(bad))[:defective]
    return pa.concat_tables([test.filter(is_good), bad.take(pa.array(np.sort(chosen)))])


def _show(name: str, work: Path, nights: Sequence[pa.Table], score: Callable[[Path], Path]) -> None:
    found: list[list[float]] = []
    for draw, night in enumerate(nights):
        lake = work / f"night-{draw}"
        lake.mkdir(parents=True, exist_ok=True)
        pq.write_table(night, lake / "images.parquet")
        started = time.perf_counter()
        scores = score(lake)
        seconds = time.perf_counter() - started
        (metrics,) = patchlake.evaluate(lake, scores).values()
        found.append([*(float(metrics[one] or np.nan) for one in _SHOWN), seconds])
    means, least, most = (f(found, axis=0) for f in (np.mean, np.min, np.max))
    told = [
        f"{label} {means[at]:.3f} ({least[at]:.3f} to {most[at]:.3f})"
        for at, label in enumerate(("image AUROC", "pixel AUROC", "AUPRO"))
    ]
    print(f"{name:<30} {', '.join(told)}, {means[-1]:.0f} s", flush=True)


if __name__ == "__main__":
    main()
