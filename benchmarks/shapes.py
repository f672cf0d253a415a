r"""What the shape of inputs is worth: a square, the photo's own shape, and more or fewer pixels.

    python benchmarks/shapes.py FOLDER WORK --every 3 \
        --images '{"resize": [224, 224]}' '{"resize": "auto", "pixels": 50176}'

FOLDER has one product in MVTec layout; every third of its photos is taken, of each label by itself.
Each further argument is the settings under `image` of one line: image AUROC, pixel AUROC, AUPRO to
30 and to 5 %, images a second of a scoring in one process without pictures, and the model's MiB.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import patchlake

IMAGES = (
    '{"resize": [224, 224]}',
    '{"resize": [448, 448]}',
    '{"resize": "auto", "pixels": 50176}',
    '{"resize": "auto", "pixels": 200704}',
)


def main() -> None:
    """Ingest a share of the photos, then fit, score and evaluate each line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1, help="one photo of so many")
    parser.add_argument("--images", nargs="+", default=list(IMAGES), help="settings, as JSON")
    parser.add_argument("--backbone", default="lite0", metavar="NAME[=WEIGHTS]")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    lake = arguments.work / "lake"
    share_of(arguments.folder, arguments.work / "photos", arguments.every)
    patchlake.ingest(arguments.work / "photos", lake, group=arguments.folder.name)
    name, _, weights = arguments.backbone.partition("=")
    print("| image | inputs | image AUROC | pixel AUROC | AUPRO | AUPRO 5 % | images/s | MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for text in arguments.images:
        image = json.loads(text)
        settings = patchlake.settings(
            image=image,
            backbone={"name": name, "weights": weights or None},
            score={"heatmaps": "none"},
        )
        _line(text, lake, arguments.work, settings)


def _line(text: str, lake: Path, work: Path, settings: patchlake.Settings) -> None:
    model, scores = work / "model", work / "scores"
    for folder in (model, scores):
        shutil.rmtree(folder, ignore_errors=True)
    fitted = patchlake.fit(lake, model, settings=settings)
    begin = time.perf_counter()
    result = patchlake.score(lake, model, scores, settings=settings)
    pace = result.images / (time.perf_counter() - begin)
    (metrics,) = patchlake.evaluate(lake, scores, settings=settings).values()
    height, width = next(iter(fitted.shapes.values()), settings.image.resize)
    size = sum(file.stat().st_size for file in model.glob("g=*/*")) / 2**20
    values = (metrics[one] for one in ("image_auroc", "pixel_auroc", "aupro", "aupro_5"))
    told = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
    print(f"| `{text}` | {width} x {height} | {told} | {pace:.1f} | {size:.1f} |", flush=True)


def share_of(folder: Path, target: Path, every: int) -> None:
    """Link one photo of so many, of each folder by itself, and the masks of those taken."""
    for label in sorted(folder.glob("t*/*")):
        for photo in sorted(label.iterdir())[::every]:
            masks = (folder / "ground_truth" / label.name).glob(f"{photo.stem}*")
            for file in (photo, *(masks if label.parent.name == "test" else ())):
                link = target / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
