"""Daft's published image pipeline over an images table; `benchmarks/pipelines.py` runs it.

    PYTHONPATH=SITE python benchmarks/pipeline_daft.py IMAGES OUT --weights resnet18.safetensors

After "Image Classification Benchmark", github.com/Eventual-Inc/Daft,
benchmarking/ai/image_classification/daft_main.py: read Parquet, decode with Daft, `apply` the
transform row by row, a class with a batch method of 100 that holds the network, select, write
Parquet. What differs:

* the encoded images are in the table, and are not downloaded;
* the embedding is written, and not the name of a class;
* one instance on CPUs takes the place of eight with a GPU (`--instances`);
* it runs on Daft's own runner, its default on one machine, and not on Ray.
"""

import argparse
from pathlib import Path

import daft
import numpy as np
import torch
from daft import DataType, Series, col
from daft.functions import decode_image
from networks import CUTS, DIMENSIONS, embedding_network, transform

_BATCH = 100
_SHAPE = (3, 224, 224)


def main() -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cut", choices=CUTS, default="layer3")
    parser.add_argument("--instances", type=int, default=1)
    arguments = parser.parse_args()
    embed = _embedder(arguments.cut, arguments.instances)(arguments.weights, arguments.cut)
    prepare = transform()
    # Only the columns that are wanted are read: the table has masks and times, too.
    frame = daft.read_parquet(f"{arguments.images}/**/*.parquet").select("image_id", "image")
    frame = frame.with_column("decoded", decode_image(col("image"), mode=daft.ImageMode.RGB))
    frame = frame.with_column(
        "input",
        col("decoded").apply(
            func=lambda image: prepare(image).numpy(),
            return_dtype=DataType.tensor(dtype=DataType.float32(), shape=_SHAPE),
        ),
    )
    frame = frame.with_column("embedding", embed(col("input")))
    frame.select("image_id", "embedding").write_parquet(str(arguments.out))


def _embedder(cut: str, instances: int) -> type:
    """Return the class that holds the network, as Daft wants its columns declared."""

    @daft.cls(max_concurrency=instances)
    class Embed:
        def __init__(self, weights: Path, cut: str) -> None:
            self._network = embedding_network(weights, cut)

        @daft.method.batch(
            return_dtype=DataType.fixed_size_list(DataType.float32(), DIMENSIONS[cut]),
            batch_size=_BATCH,
        )
        def __call__(self, images: Series) -> list[np.ndarray]:
            if len(images) == 0:
                return []
            batch = torch.from_numpy(np.array(images.to_pylist()))
            with torch.inference_mode():
                return list(self._network(batch).numpy())

    return Embed


if __name__ == "__main__":
    main()
