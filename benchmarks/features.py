"""Embeddings of folders of images, for the other benchmarks; as a script, patches to a .npy file.

python benchmarks/features.py IMAGES OUT.npy --backbone resnet18.tv_in1k --weights FILE
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from patchlake.pipeline.config import BackboneSettings, Layers
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.methods.shared.contract import Method
from patchlake.pipeline.methods.shared.corpus import Arrays


def extractor_of(
    method: Method,
    backbone: str,
    weights: str | None,
    *,
    layers: Layers | None = None,
) -> Extractor:
    """Return what embeds images for a method, by its own layers where none are named."""
    settings = BackboneSettings(name=backbone, weights=weights, layers=layers or method.layers)
    embed = partial(method.embed, seed=0)
    return Extractor(load_backbone(settings), embed)


def embedded(extractor: Extractor, files: Sequence[Path]) -> Arrays:
    """Return the embeddings of image files, squashed to 224 x 224."""
    geometry = Geometry((224, 224), None)
    pixels = [geometry.apply(decode_image(path.read_bytes(), Limits())) for path in files]
    return extractor(np.stack(pixels))


def files_below(*folders: Path) -> list[Path]:
    """Return all files below the folders, by name."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def evenly(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` of the files, evenly spread; all, of fewer."""
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
    return [files[number] for number in chosen]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("out")
    parser.add_argument("--backbone", default="resnet18.tv_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--count", type=int, default=200, help="images, the first by name")
    arguments = parser.parse_args()
    extractor = extractor_of(PatchCore(), arguments.backbone, arguments.weights)
    files = files_below(arguments.images)[: arguments.count]
    embeddings = embedded(extractor, files)["patches"]
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    np.save(arguments.out, rows)
    print(f"{len(files)} images, {rows.shape[0]} patches of {rows.shape[1]} dimensions")


if __name__ == "__main__":
    main()
