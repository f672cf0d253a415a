r"""Defective images among the good: what they cost, and what a robust fit makes of them.

    python benchmarks/robust.py IMAGES WORK --methods patchcore padim --shares 0 0.05 0.1 0.2

IMAGES is an images table of one group, with labels and splits. Of its defective images, half of the
look-alike parts are test images, always the same; of the other half, drawn by `--seed`, so many are
put among the training images, with the label good, as make up a share of them. Good test images
stay. Each method is fitted as it is and with `--robust`; printed are image AUROC, pixel AUROC and
AUPRO of the test images, how many of the defective training images were left out (or are suspects,
where none is), and how many good ones with them.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

import patchlake
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.likeness import look_alikes


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each method, share and way to fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    # One file at a time: files of a folder, without the columns that are in their paths.
    table = ds.dataset(arguments.images, partitioning=None).to_table().sort_by("image_id")
    pool = _pool(table, arguments.seed)
    print("method     share  fit     image AUROC  pixel AUROC  AUPRO  found  good ones with them")
    for share in arguments.shares:
        lake = arguments.work / f"images-{share}"
        bad = _write(table, lake, pool, share)
        for method in arguments.methods:
            for robust in (False, True):
                line = _line(lake, arguments.work, method, bad, robust=robust)
                way = "robust" if robust else "as is"
                print(f"{method:<10} {share:<6} {way:<7} {line}", flush=True)


def _pool(table: pa.Table, seed: int) -> np.ndarray:
    """Return rows of defective images of half of the parts, in random order."""
    labels = np.array(table.column("label").to_pylist(), object)
    defective = np.flatnonzero(labels != "good")
    images = table.column("image")
    seen = [_thumbnail(images[int(row)].as_py()) for row in defective]
    parts = look_alikes(np.stack(seen))
    random = np.random.default_rng(seed)
    names = random.permutation(np.unique(parts))
    return random.permutation(defective[np.isin(parts, names[: len(names) // 2])])


def _thumbnail(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return thumbnail(np.asarray(pixels)).ravel()


def _write(table: pa.Table, lake: Path, pool: np.ndarray, share: float) -> set[str]:
    """Write the images table with a share of defective training images; return their ids."""
    rows = table.to_pydict()
    is_training = [
        split == "train" and label == "good"
        for split, label in zip(rows["split"], rows["label"], strict=True)
    ]
    count = round(share / (1 - share) * sum(is_training))
    if count > len(pool):
        raise SystemExit(f"a share of {share} takes {count} defective images; {len(pool)} are left")
    mixed = set(pool[:count].tolist())
    left_aside = set(pool.tolist()) - mixed
    for row in mixed:
        rows["split"][row], rows["label"][row], rows["mask"][row] = "train", "good", None
    kept = [row for row in range(len(table)) if row not in left_aside]
    lake.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows, schema=table.schema).take(kept), lake / "images.parquet")
    return {rows["image_id"][row] for row in mixed}


def _line(lake: Path, work: Path, method: str, bad: set[str], *, robust: bool) -> str:
    flags = {"method": {"name": method}, "robust": robust, "score": {"heatmaps": "none"}}
    settings = patchlake.load_settings(flags=flags)
    name = f"{lake.name}-{method}-{'robust' if robust else 'plain'}"
    model, scores = work / f"{name}-model", work / f"{name}-scores"
    manifest = patchlake.fit(lake, model, settings=settings)
    images = sum(record.images for record in manifest.groups.values())
    patchlake.score(lake, model, scores, settings=settings, where="split = 'test'")
    (found,) = patchlake.evaluate(lake, scores).values()
    listed = pq.read_table(model / "suspects.parquet").to_pylist()
    named = {row["image_id"] for row in listed if row["left_out" if robust else "is_suspect"]}
    metrics = f"{found['image_auroc']:<12.3f} {found['pixel_auroc']:<12.3f} {found['aupro']:<6.3f}"
    return f"{metrics} {len(named & bad)} of {len(bad)}  {len(named - bad)} ({images} images)"


if __name__ == "__main__":
    main()
