"""Ray Data's published image pipeline over an images table; `benchmarks/pipelines.py` runs it.

    python benchmarks/pipeline_ray.py IMAGES OUT --weights resnet18.safetensors --cut layer3

After "Image Classification" of "Ray Data Benchmarks", github.com/ray-project/ray,
doc/source/data/benchmark.md, whose code is in
release/nightly_tests/multimodal_inference_benchmarks/image_classification/ray_data_main.py: read
Parquet, one `map` that decodes with Pillow, one `map` that transforms, `map_batches` of 100 with a
class that holds the network, write Parquet. What differs:

* the encoded images are in the table, as in the same page's "Large-scale Image Embedding"
  (large_image_embedding/ray_data_main.py), and are not downloaded;
* the embedding is written, as there, and not the name of a class;
* an actor for each core takes the place of eight with a GPU (`--actors`). Ray Data then runs all
  three steps in the actors, so Ray is told of one core more, for the tasks that read and write;
* the rows are cut into `--blocks` with `repartition`, because a table of one file would be one
  block, which one actor would take while the others wait;
* Ray is started here, and nothing warms it up: the caller's time includes the start.
"""

import argparse
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import ray
import ray.data
import torch
from networks import CUTS, embedding_network, transform
from PIL import Image

_BATCH = 100
_TRANSFORM = transform()

Row = dict[str, bytes | str | np.ndarray]
Batch = dict[str, np.ndarray]


def decode(row: Row) -> Row:
    """Return the row with pixels in the place of the encoded image."""
    encoded = row["image"]
    assert isinstance(encoded, bytes)
    pixels = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return {"image_id": row["image_id"], "image": pixels}


def prepare(row: Row) -> Row:
    """Return the row with the network's input in the place of pixels."""
    pixels = row["image"]
    assert isinstance(pixels, np.ndarray)
    return {"image_id": row["image_id"], "image": _TRANSFORM(pixels).numpy()}


class Embed:
    """Holds the network."""

    def __init__(self, weights: Path, cut: str) -> None:
        self._network = embedding_network(weights, cut)

    def __call__(self, batch: Batch) -> Batch:
        """Return the names and embeddings of a batch."""
        with torch.inference_mode():
            embedded = self._network(torch.from_numpy(batch["image"]))
        return {"image_id": batch["image_id"], "embedding": embedded.numpy()}


def main() -> None:
    """Start Ray, run the pipeline, and end Ray."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cut", choices=CUTS, default="layer3")
    parser.add_argument("--actors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--blocks", type=int, default=12)
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # The folder's name is short because a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=arguments.actors + 1,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            _embed_all(arguments)
        finally:
            ray.shutdown()


def _embed_all(arguments: argparse.Namespace) -> None:
    # Only the columns that are wanted are read: the table has masks and times, too.
    images = ray.data.read_parquet(str(arguments.images)).select_columns(["image_id", "image"])
    embedded = (
        images.repartition(arguments.blocks)
        .map(decode)
        .map(prepare)
        .map_batches(
            Embed,
            fn_constructor_args=(arguments.weights.resolve(), arguments.cut),
            batch_size=_BATCH,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        )
    )
    embedded.write_parquet(str(arguments.out.resolve()))


if __name__ == "__main__":
    main()
