"""Write the patch embeddings of a folder of images to a .npy file, for the other benchmarks.

python benchmarks/features.py IMAGES OUT.npy --backbone resnet18.tv_in1k --weights FILE
"""

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import BackboneSettings
from pipeline.features.backbone import load_backbone
from pipeline.features.extractor import Extractor
from pipeline.images.decode import decode_image
from pipeline.images.geometry import Geometry
from pipeline.methods.patchcore import PatchCore


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("out")
    parser.add_argument("--backbone", default="resnet18.tv_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--count", type=int, default=200, help="images, the first by name")
    arguments = parser.parse_args()
    settings = BackboneSettings(
        name=arguments.backbone, weights=arguments.weights, layers=PatchCore.layers
    )
    embed = partial(PatchCore().embed, seed=0)
    extractor = Extractor(load_backbone(settings), embed, threads=os.cpu_count() or 1)
    geometry = Geometry((224, 224), None)
    files = sorted(path for path in Path(arguments.images).rglob("*") if path.is_file())
    pixels = [
        geometry.apply(decode_image(path.read_bytes(), max_pixels=10**8, max_bytes=10**8))
        for path in files[: arguments.count]
    ]
    embeddings = extractor(np.stack(pixels))["patches"]
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    np.save(arguments.out, rows)
    print(f"{len(pixels)} images, {rows.shape[0]} patches of {rows.shape[1]} dimensions")


if __name__ == "__main__":
    main()
