r"""What verdicts promise, and what they find: every method on images it has not seen.

    python benchmarks/verdicts.py WORK NAME=FOLDER --methods patchcore padim spade --backbone lite0

FOLDERs are in MVTec layout. Of each method and rate: the share of good test images whose p-value is
at most the rate, each part counting once, and the share of defective ones. Parts of test images are
told as those of training images are (`maths/likeness.py`); a good image's neighbours of the same
part alarm together, so the standard error is that of so many parts.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

import patchlake
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.likeness import look_alikes

_RATES = (0.01, 0.05, 0.1)


def main() -> None:
    """Print a line for each product, method and rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("products", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--methods", nargs="+", default=["patchcore"])
    arguments = parser.parse_args()
    print("product    method       rate  false alarms (of parts, standard error)  found")
    for product in arguments.products:
        name, _, source = product.partition("=")
        lake = arguments.work / name
        patchlake.ingest(source, lake)
        for method in arguments.methods:
            scores = _scored(lake, arguments.work / f"{name}-{method}", arguments.backbone, method)
            good, defective = _test_rows(scores)
            part = look_alikes(np.stack([_thumbnail(Path(source), row) for row in good]))
            for rate in _RATES:
                print(f"{name:<10} {method:<12} {rate:<5} {_line(good, defective, part, rate)}")


def _scored(lake: Path, work: Path, backbone: str, method: str) -> Path:
    settings = patchlake.load_settings(
        flags={"backbone": {"name": backbone}, "method": {"name": method}}
    )
    model, scores = Path(f"{work}-model"), Path(f"{work}-scores")
    patchlake.fit(lake, model, settings=settings)
    patchlake.score(lake, model, scores, settings=settings)
    return scores


def _test_rows(scores: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the good and the defective test images, told by the folders of MVTec's layout."""
    names = ["image_id", "p_value"]
    table: pa.Table = patchlake.open_scores(scores).to_table(columns=names)
    table = table.filter(pc.match_substring(table.column("image_id"), "test/")).sort_by("image_id")
    is_good = pc.match_substring(table.column("image_id"), "/good/")
    return table.filter(is_good).to_pylist(), table.filter(pc.invert(is_good)).to_pylist()


def _thumbnail(source: Path, row: dict[str, object]) -> np.ndarray:
    # `ingest` names an image by its path, below the folder's own name where it is one product.
    image_id = str(row["image_id"])
    path = source / image_id if (source / image_id).exists() else source.parent / image_id
    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return thumbnail(np.asarray(pixels)).ravel()


def _line(
    good: list[dict[str, object]],
    defective: list[dict[str, object]],
    part: np.ndarray,
    rate: float,
) -> str:
    alarms = np.array([float(str(row["p_value"])) <= rate for row in good])
    found = np.mean([float(str(row["p_value"])) <= rate for row in defective])
    _, numbers, counts = np.unique(part, return_inverse=True, return_counts=True)
    share = np.bincount(numbers, alarms) / counts
    error = np.sqrt(rate * (1 - rate) / len(counts))
    of_parts = f"{alarms.mean():.3f} of images, {len(counts)} parts, {error:.3f}"
    return f"{share.mean():.3f} ({of_parts})  {found:.3f}"


if __name__ == "__main__":
    main()
