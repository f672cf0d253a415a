r"""Few images, turned or not: metrics of PatchCore by 1 to 16 images, and by what borders become.

    python benchmarks/rotations.py FOLDER --pool 32 --draws 10 --every 8 --borders mirror black edge

FOLDER has one product in MVTec layout. A pool of training photos and their seven copies, turned by
45, 90, ... 315 degrees, are embedded once, squashed to 224 x 224, and so are test photos. Then so
many photos of the pool are drawn, and all of their patches are the bank (`coreset_fraction: 1`):
without copies, and with those of each border. The nearest row of a union is the nearest one of its
parts, so that each photo's distances are measured once, in float32. A line for each: image AUROC,
pixel AUROC and AUPRO as means over the draws with their standard deviation, and by how much copies
change each, draw by draw, with the standard error of that mean (of draws from one pool).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from features import extractor_of, files_below
from PIL import Image
from position import metrics_of

from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Geometry, turned_inputs
from patchlake.pipeline.images.rotations import rotated
from patchlake.pipeline.methods.patchcore import PatchCore

GEOMETRY, COPIES = Geometry((224, 224), None), 8
# As `numpy.pad` calls them; `mirror` is our own.
PADDED = {"black": "constant", "edge": "edge"}


def main(words: Sequence[str] | None = None) -> None:
    """Embed, measure all distances, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="lite0", metavar="NAME[=WEIGHTS]")
    parser.add_argument("--pool", type=int, default=32)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--every", type=int, default=1, help="one test photo of so many")
    parser.add_argument("--borders", nargs="+", default=["mirror"], help="mirror black edge")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    name, _, weights = arguments.backbone.partition("=")
    extractor = extractor_of(PatchCore(), name, weights or None)
    good = files_below(arguments.folder / "train" / "good")
    chosen = np.random.default_rng(0).permutation(len(good))[: arguments.pool]
    pool = [decode_image(good[at].read_bytes(), Limits()) for at in chosen]
    files = files_below(arguments.folder / "test")[:: arguments.every]
    test = _embedded(
        extractor, [GEOMETRY.apply(decode_image(f.read_bytes(), Limits())) for f in files]
    )
    print(f"{len(pool)} photos in the pool, {len(files)} to test, {test.shape[-1]} dimensions")
    queries = torch.from_numpy(test.reshape(-1, test.shape[-1]))
    alone = np.stack([_nearest(queries, extractor, [GEOMETRY.apply(one)]) for one in pool])
    nearest = {"none": alone}
    for border in arguments.borders:
        copies = [_nearest(queries, extractor, _turned(one, border)) for one in pool]
        nearest[border] = np.minimum(alone, np.stack(copies))
    print("| images | copies | image AUROC | pixel AUROC | AUPRO | change | | |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in arguments.sizes:
        draws = [
            np.random.default_rng([1, draw]).permutation(len(pool))[:size]
            for draw in range(arguments.draws)
        ]
        first: np.ndarray | None = None
        for border, distances in nearest.items():
            found = []
            for draw in draws:
                maps = distances[draw].min(axis=0).reshape(test.shape[:3])
                scores = maps.reshape(len(maps), -1).max(axis=1)
                found.append(metrics_of(arguments.folder, files, scores, maps))
            values = np.array(found)
            print(f"| {size} | {border} | {_told(values, first)} |", flush=True)
            first = values if first is None else first


def _told(values: np.ndarray, first: np.ndarray | None) -> str:
    spread = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    told = [f"{mean:.3f} +- {deviation:.3f}" for mean, deviation in spread]
    if first is None:
        return " | ".join((*told, "", "", ""))
    changes = values - first
    errors = changes.std(axis=0, ddof=1) / np.sqrt(len(changes))
    told += [f"{m:+.3f} +- {e:.3f}" for m, e in zip(changes.mean(axis=0), errors, strict=True)]
    return " | ".join(told)


def _embedded(extractor: Extractor, pixels: Sequence[np.ndarray]) -> np.ndarray:
    return extractor(np.stack(pixels))["patches"]


def _nearest(
    queries: torch.Tensor, extractor: Extractor, pixels: Sequence[np.ndarray]
) -> np.ndarray:
    """Return each query's distance to the nearest patch of some inputs."""
    rows = torch.from_numpy(_embedded(extractor, pixels))
    rows = rows.reshape(-1, rows.shape[-1])
    lengths = (rows**2).sum(dim=1)
    found = []
    for some in queries.split(8192):
        least = torch.addmm(lengths, some, rows.T, alpha=-2).amin(dim=1)
        found.append((least + (some**2).sum(dim=1)).clamp(min=0).sqrt())
    return torch.cat(found).numpy()


def _turned(image: Image.Image, border: str) -> list[np.ndarray]:
    """Return the inputs of a photo's copies, with something beyond its borders."""
    if border == "mirror":
        return [one.apply(image) for one in turned_inputs(GEOMETRY, COPIES)[1:]]
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    side = max(height, width)
    padded = np.pad(pixels, ((side, side), (side, side), (0, 0)), mode=PADDED[border])
    inputs = []
    for number in range(1, COPIES):
        turned = rotated(padded, padded.shape[1::-1], 360 * number / COPIES)
        whole = Image.fromarray(turned[side : side + height, side : side + width])
        inputs.append(GEOMETRY.apply(whole))
    return inputs


if __name__ == "__main__":
    main()
