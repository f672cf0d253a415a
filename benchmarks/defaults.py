r"""Choose layers and size of a backbone by training images, into some of which defects are drawn.

    python benchmarks/defaults.py FOLDER WORK --backbone lite0 --layers 2,3 1,2,3 --sizes 224 256

FOLDER has one product in MVTec layout, of which only `train/good` is read. The first three quarters
of its images, by name, are trained on; each of the others is a good image, and once more a
defective one: a scratch, a spot, a patch from elsewhere in the image, or a part out of focus. One
line for each combination: image AUROC, pixel AUROC, AUPRO, and images a second of a scoring in one
process without pictures, which loads the model, decodes, embeds, searches and writes.
"""

import argparse
import shutil
import time
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import patchlake


def main() -> None:
    """Draw the defects, then fit, score and evaluate each combination."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--backbone", nargs="+", default=["lite0"], metavar="NAME[=WEIGHTS]")
    parser.add_argument("--layers", nargs="+", default=["2,3"], help="2,3 1,2,3")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--images", type=int, default=400, help="at most so many of the folder")
    parser.add_argument("--set", nargs="*", default=[], help="of the method, name=number")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    pictures, lake = arguments.work / "pictures", arguments.work / "lake"
    _draw(arguments.folder, pictures, arguments.images)
    patchlake.ingest(pictures, lake, group=arguments.folder.name)
    options = {n: float(v) for n, _, v in (text.partition("=") for text in arguments.set)}
    print(
        f"{'backbone':<16}{'layers':<10}{'size':>5}{'image':>8}{'pixel':>8}{'AUPRO':>8}{'img/s':>8}"
    )
    for backbone, layers, size in product(arguments.backbone, arguments.layers, arguments.sizes):
        settings = patchlake.settings(
            backbone={
                "name": backbone.partition("=")[0],
                "weights": backbone.partition("=")[2] or None,
                "layers": [int(layer) for layer in layers.split(",")],
            },
            image={"resize": [size, size]},
            method={"name": "patchcore", **options},
            score={"heatmaps": "none"},
        )
        model, scores = arguments.work / "model", arguments.work / "scores"
        for folder in (model, scores):
            shutil.rmtree(folder, ignore_errors=True)
        patchlake.fit(lake, model, settings=settings)
        begin = time.perf_counter()
        result = patchlake.score(lake, model, scores, settings=settings)
        pace = result.images / (time.perf_counter() - begin)
        (metrics,) = patchlake.evaluate(lake, scores, settings=settings).values()
        print(
            f"{backbone:<16}{layers:<10}{size:>5}{metrics['image_auroc']:>8.3f}"
            f"{metrics['pixel_auroc']:>8.3f}{metrics['aupro']:>8.3f}{pace:>8.1f}",
            flush=True,
        )


def _draw(folder: Path, pictures: Path, count: int) -> None:
    paths = sorted((folder / "train" / "good").iterdir())
    paths = paths[:: -(-len(paths) // count)]
    cut = len(paths) * 3 // 4
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        part = "train/good" if number < cut else "test/good"
        _save(image, pictures / part / f"{path.stem}.png")
        if number >= cut:
            kind = list(DEFECTS)[number % len(DEFECTS)]
            mask = Image.new("L", image.size)
            rng = np.random.default_rng([number, 7])
            defective = DEFECTS[kind](image, ImageDraw.Draw(mask), rng)
            _save(Image.composite(defective, image, mask), pictures / "test" / kind / path.name)
            _save(mask, pictures / "ground_truth" / kind / f"{path.stem}_mask.png")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path.with_suffix(".png"))


def _box(image: Image.Image, rng: np.random.Generator, low: float, high: float) -> tuple[int, ...]:
    """Return a box whose sides are so much of the image's shorter side."""
    sides = np.maximum(4, rng.uniform(low, high, 2) * min(image.size)).astype(int)
    corner = [
        int(rng.integers(0, size - side)) for size, side in zip(image.size, sides, strict=True)
    ]
    return (*corner, *(c + int(s) for c, s in zip(corner, sides, strict=True)))


def _scratch(
    image: Image.Image, mask: ImageDraw.ImageDraw, rng: np.random.Generator
) -> Image.Image:
    box = _box(image, rng, 0.1, 0.4)
    mask.line(box, fill=255, width=max(2, min(image.size) // 100))
    return image.point(lambda value: int(value * 0.6))


def _spot(image: Image.Image, mask: ImageDraw.ImageDraw, rng: np.random.Generator) -> Image.Image:
    mask.ellipse(_box(image, rng, 0.03, 0.1), fill=255)
    factor = float(rng.choice([0.6, 1.5]))
    return image.point(lambda value: min(255, int(value * factor)))


def _patch(image: Image.Image, mask: ImageDraw.ImageDraw, rng: np.random.Generator) -> Image.Image:
    mask.rectangle(_box(image, rng, 0.06, 0.15), fill=255)
    shift = rng.integers(min(image.size) // 4, min(image.size) // 2, 2)
    return Image.fromarray(np.roll(np.asarray(image), shift, axis=(0, 1))).rotate(180)


def _blur(image: Image.Image, mask: ImageDraw.ImageDraw, rng: np.random.Generator) -> Image.Image:
    mask.ellipse(_box(image, rng, 0.1, 0.25), fill=255)
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 60))


DEFECTS = {"scratch": _scratch, "spot": _spot, "patch": _patch, "blur": _blur}

if __name__ == "__main__":
    main()
