"""anomalib's PatchCore by itself, in one of three ways; `benchmarks/patchcore.py` runs it.

    PYTHONPATH=SITE python benchmarks/patchcore_anomalib.py model PICTURES --bank BANK.npy \
        --weights resnet18.safetensors

* model: its torch model's forward, of batches of 32 images that are resized to `--side`;
* engine: its `Engine.predict` over a `PredictDataset` of the folder, in batches of one, as it comes
  (with `--pictures`: its visualizer writes a picture of each image);
* fit: its training: embeddings of all images, then its coreset, of which `--picks` are made.

The memory bank is read from a file, so that all search the same rows. The last line of the output
is JSON: seconds from after the imports.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from peers import Images, use_local_weights

if TYPE_CHECKING:
    from anomalib.models.components import KCenterGreedy

_BATCH = 32
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_BACKBONE, _LAYERS = "resnet18", ["layer2", "layer3"]


def main() -> None:
    """Parse, do one of the three, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("way", choices=["model", "engine", "fit"])
    parser.add_argument("folder", type=Path, help="of images, and nothing else")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--bank", type=Path, help="rows of a memory bank, .npy")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--pictures", action="store_true", help="engine: write pictures")
    parser.add_argument("--fraction", type=float, default=0.01, help="fit: of the patches")
    parser.add_argument("--picks", type=int, default=100, help="fit: of the coreset, at most")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    use_local_weights(arguments.weights)
    ways = {"model": _forward, "engine": _predict, "fit": _fit}
    with torch.no_grad():
        print(json.dumps(ways[arguments.way](arguments)))


def _forward(arguments: argparse.Namespace) -> dict[str, float]:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(_LAYERS, _BACKBONE).eval()
    model.memory_bank = torch.from_numpy(np.load(arguments.bank))
    began, inside, images = time.perf_counter(), 0.0, 0
    for batch in _images(arguments).batches(_BATCH):
        before = time.perf_counter()
        images += len(model(batch).pred_score)
        inside += time.perf_counter() - before
    return {"images": images, "seconds": time.perf_counter() - began, "forward_s": inside}


def _predict(arguments: argparse.Namespace) -> dict[str, float]:
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine
    from anomalib.models import Patchcore

    side = (arguments.side, arguments.side)
    model = Patchcore(
        backbone=_BACKBONE,
        layers=_LAYERS,
        pre_processor=Patchcore.configure_pre_processor(image_size=side),
        # It would want labels and masks.
        evaluator=False,
        visualizer=arguments.pictures,
    )
    model.model.memory_bank = torch.from_numpy(np.load(arguments.bank))
    dataset = PredictDataset(arguments.folder)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as results:
        engine = Engine(accelerator="cpu", default_root_dir=results)
        # Without their predictions, which would be kept in memory until the end.
        engine.predict(model, dataset=dataset, return_predictions=False)
        pictures = sum(path.suffix in _PICTURES for path in Path(results).rglob("*"))
    seconds = time.perf_counter() - began
    return {"images": len(dataset), "seconds": seconds, "pictures": pictures}


def _fit(arguments: argparse.Namespace) -> dict[str, float]:
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(_LAYERS, _BACKBONE).train()
    images = _images(arguments)
    began = time.perf_counter()
    for batch in images.batches(_BATCH):
        model(batch)
    # As `subsample_embedding` does it, but for the number of picks.
    rows = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    sampler = KCenterGreedy(rows, arguments.fraction)
    embedded = time.perf_counter()
    size, picks = sampler.coreset_size, min(sampler.coreset_size, arguments.picks)
    # One pick is the projection; more of them, the projection once more and the picks.
    project_s, select_s = (_selection_s(sampler, count) for count in (1, picks))
    pick_s = (select_s - project_s) / (picks - 1)
    return {
        "images": len(images),
        "embed_s": embedded - began,
        "project_s": project_s,
        "pick_s": pick_s,
        "picks": picks,
        "size": size,
        # What a whole fit takes beyond this process.
        "more_s": pick_s * (size - picks) - project_s,
    }


def _selection_s(sampler: "KCenterGreedy", picks: int) -> float:
    began = time.perf_counter()
    sampler.coreset_size = picks
    sampler.sample_coreset()
    return time.perf_counter() - began


def _images(arguments: argparse.Namespace) -> Images:
    return Images(sorted(arguments.folder.iterdir()), arguments.side)


if __name__ == "__main__":
    main()
