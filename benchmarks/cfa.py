r"""What CFA's training does, epoch by epoch: metrics, and how far normal and defective patches are.

    python benchmarks/cfa.py FOLDER --weights resnet18.safetensors --train 60 --test 60

FOLDER has one product in MVTec layout. Descent is CFA's own, batches of 4 images in another order.
Printed for each of `--epochs`: image and pixel AUROC and AUPRO; the median distance to the nearest
centre of patches of good images and of patches with a defect in them, and their ratio; and the
spread of training descriptors: of one place over the images, and of the places' means.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from features import embedded, evenly, extractor_of, files_below
from scipy.ndimage import gaussian_filter

from patchlake.pipeline.evaluation.pixels import PixelCurves
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.masks import decode_mask
from patchlake.pipeline.maths.resampling import bilinear_matrix
from patchlake.pipeline.maths.smoothing import smoothed_peaks
from patchlake.pipeline.methods.cfa import CFA, by_layer, descriptors, grid_of, softmin_scores
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.methods.shared.descent import AdamW
from patchlake.pipeline.methods.shared.hyperspheres import (
    Hyperspheres,
    Loss,
    Parameters,
    search_among,
)
from patchlake.pipeline.stages.compare import FRAME

METHOD = CFA()
RESNET = "resnet18.tv_in1k"


def main() -> None:
    """Embed, train, and print a line at each of the epochs."""
    arguments = _arguments()
    folder = arguments.folder
    extractor = extractor_of(METHOD, RESNET, arguments.weights)
    good = evenly(files_below(folder / "test/good"), arguments.test)
    others = [path for path in (folder / "test").iterdir() if path.name != "good"]
    defective = evenly(files_below(*others), arguments.test)
    train = embedded(extractor, evenly(files_below(folder / "train"), arguments.train))
    test = embedded(extractor, good + defective)
    masks = np.array([_mask(folder, path) for path in good + defective])
    means = {name: maps.mean(axis=0, dtype=np.float64) for name, maps in train.items()}
    dim = sum(maps.shape[-1] for maps in train.values())
    start = Parameters.drawn(dim, dim, 1e-5, np.random.default_rng(0))
    centres = descriptors({name: mean.astype(np.float32) for name, mean in means.items()}, start)
    state = AdamW.start(start.flat())
    for epoch in range(max(arguments.epochs) + 1):
        if epoch in arguments.epochs:
            parameters = Parameters.of(state.flat, dim)
            print(f"epoch {epoch:3}: {_figures(parameters, centres, (train, test), masks)}")
        state = _epoch(state, epoch, train, centres)


def _epoch(state: AdamW, epoch: int, train: Arrays, centres: np.ndarray) -> AdamW:
    """Return the state after all training images once, in batches."""
    loss = Loss(METHOD.neighbours, METHOD.hard_negatives, METHOD.nu, METHOD.alpha)
    spheres = Hyperspheres.around(centres, loss, threads=torch.get_num_threads())
    count, size = len(train["layer0"]), METHOD.training_batch
    order = np.random.default_rng(epoch).permutation(count)
    for begin in range(0, count - size + 1, size):
        parameters = Parameters.of(state.flat, centres.shape[1])
        gradients = [
            spheres.gradient(by_layer(_image(train, number)), parameters)[1]
            for number in order[begin : begin + size]
        ]
        mean = np.mean(gradients, axis=0).astype(np.float32)
        state = state.step(mean, METHOD.learning_rate, METHOD.weight_decay)
    return state


def _figures(
    parameters: Parameters, centres: np.ndarray, images: tuple[Arrays, Arrays], masks: np.ndarray
) -> str:
    train, test = images
    search, grid = search_among(centres), grid_of(test)
    maps = np.empty((len(masks), *grid), np.float32)
    nearest = np.empty_like(maps)
    for number in range(len(masks)):
        patches = descriptors(_image(test, number), parameters)
        distances, _ = search.nearest(patches, METHOD.neighbours)
        maps[number] = softmin_scores(distances).reshape(grid)
        nearest[number] = distances[:, 0].reshape(grid)
    curves = PixelCurves()
    rows, columns = (bilinear_matrix(n, m) for n, m in zip(FRAME, grid, strict=True))
    for own, mask in zip(maps, masks, strict=True):
        curves.add(gaussian_filter(rows @ own @ columns.T, 4).astype(np.float32), mask)
    is_anomalous = masks.any(axis=(1, 2))
    image = auroc(smoothed_peaks(maps).astype(np.float64), is_anomalous)
    # A patch is defective where any pixel below it is.
    on_grid = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(masks).float(), grid)
    near, far = np.median(nearest[~is_anomalous]), np.median(nearest[on_grid.numpy() > 0])
    some = range(0, len(train["layer0"]), max(1, len(train["layer0"]) // 20))
    found = np.stack([descriptors(_image(train, number), parameters) for number in some])
    return (
        f"image AUROC {image:.3f}, pixel {curves.auroc():.3f}, AUPRO {curves.aupro():.3f}; "
        f"distance {near:.2f} normal, {far:.2f} defect, ratio {far / near:.2f}; spread over images "
        f"{_spread(found - found.mean(axis=0)):.2f}, over places "
        f"{_spread(found.mean(axis=0) - found.mean(axis=(0, 1))):.2f}"
    )


def _spread(centred: np.ndarray) -> float:
    return float(np.sqrt(np.square(centred).sum(axis=-1).mean()))


def _image(embeddings: Arrays, number: int) -> Arrays:
    return {name: array[number] for name, array in embeddings.items()}


def _mask(folder: Path, path: Path) -> np.ndarray:
    if path.parent.name == "good":
        return np.zeros(FRAME, bool)
    file = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return decode_mask(file.read_bytes(), FRAME, Limits()).is_defect


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="one product in MVTec layout")
    parser.add_argument("--weights", help="of ResNet-18")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=60, help="good images, and defective ones")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 5, 10])
    return parser.parse_args()


if __name__ == "__main__":
    main()
