r"""PaDiM's statistics: ours against loops over locations, on real features.

    python benchmarks/gaussian.py IMAGES --weights resnet18.safetensors --anomalib SITE \
        --ind-knn-ad CHECKOUT

From the same embeddings (100 channels of ResNet-18 at 56 x 56 locations) to mean and what scoring
needs of each covariance. Contenders take turns, with the same number of threads; medians of seconds
and the ratio to ours.

    ours        moments, fragment by fragment; Cholesky whitening; float64
    loop        numpy: np.cov and np.linalg.inv of each location in a Python loop; float64
    anomalib    its MultiVariateGaussian, from SITE (site-packages, or `src` of a checkout); float32
    ind_knn_ad  its PaDiM.fit on these embeddings instead of images; float32, epsilon 0.04
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from features import embedded, extractor_of, files_below

from patchlake.pipeline.maths.gaussian import Moments, merge_rows, whitener
from patchlake.pipeline.methods.padim import PaDiM

_FRAGMENT = 256
_REGULARISATION = 0.01
_STUBS = ["anomalib", "anomalib.models", "anomalib.models.components"]
_STUBS += [f"{_STUBS[-1]}.{name}" for name in ("stats", "base")]

Precisions = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Embed, let the contenders take turns, and print."""
    arguments = _arguments()
    threads = os.cpu_count() or 1
    extractor = extractor_of(PaDiM(), "resnet18.tv_in1k", arguments.weights)
    files = files_below(arguments.images)[: arguments.count]
    embeddings = embedded(extractor, files)["patches"]
    contenders: dict[str, Precisions] = {"ours": partial(ours, threads=threads), "loop": loop}
    if arguments.anomalib:
        contenders["anomalib"] = load_anomalib(arguments.anomalib)
    if arguments.ind_knn_ad:
        contenders["ind_knn_ad"] = load_ind_knn_ad(arguments.ind_knn_ad)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, np.ndarray] = {}
    for _ in range(arguments.repeats):
        for name, run in contenders.items():
            begin = time.perf_counter()
            found[name] = run(embeddings)
            seconds[name].append(time.perf_counter() - begin)
    print(f"{len(embeddings)} images, {embeddings.shape[1:]}, {threads} threads")
    first = statistics.median(seconds["ours"])
    scale = np.abs(found["loop"]).max()
    for name, taken in seconds.items():
        median = statistics.median(taken)
        error = np.abs(found[name] - found["loop"]).max() / scale
        print(f"{name:10} {median:7.2f} s  {median / first:5.2f}x  relative error {error:.1e}")


def ours(embeddings: np.ndarray, threads: int) -> np.ndarray:
    """Return the precision matrix of each location, by way of its factor."""
    rows = embeddings.reshape(len(embeddings), -1, embeddings.shape[-1])
    moments = Moments.of(rows[:_FRAGMENT], threads=threads)
    for begin in range(_FRAGMENT, len(rows), _FRAGMENT):
        moments = merge_rows(moments, rows[begin : begin + _FRAGMENT], threads=threads)
    covariance = moments.scatter
    covariance /= moments.count - 1
    diagonal = np.arange(covariance.shape[-1])
    covariance[:, diagonal, diagonal] += _REGULARISATION
    whitening = whitener(covariance, threads=threads, reuse=True)
    return np.asarray(np.swapaxes(whitening[::97], 1, 2) @ whitening[::97])


def loop(embeddings: np.ndarray) -> np.ndarray:
    """Return the same by a loop over locations."""
    rows = embeddings.reshape(len(embeddings), -1, embeddings.shape[-1])
    identity = _REGULARISATION * np.eye(rows.shape[-1])
    found = np.empty((rows.shape[1], *identity.shape))
    for location in range(rows.shape[1]):
        found[location] = np.linalg.inv(np.cov(rows[:, location], rowvar=False) + identity)
    return found[::97]


def load_anomalib(site: Path) -> Precisions:
    """Load the peer's module as it is, without its packages' __init__."""
    for name in _STUBS:
        stub = types.ModuleType(name)
        stub.__path__ = [str(Path(site, *name.split(".")))]
        sys.modules[name] = stub
    buffers = importlib.import_module(f"{_STUBS[-1]}.dynamic_buffer")
    sys.modules[_STUBS[-1]].DynamicBufferMixin = (  # type: ignore[attr-defined]
        buffers.DynamicBufferMixin
    )
    module = importlib.import_module(f"{_STUBS[-2]}.multi_variate_gaussian")

    def run(embeddings: np.ndarray) -> np.ndarray:
        maps = torch.from_numpy(embeddings).permute(0, 3, 1, 2).contiguous()
        _, inverse = module.MultiVariateGaussian().forward(maps)
        return np.asarray(inverse.numpy()[::97])

    return run


def load_ind_knn_ad(checkout: Path) -> Precisions:
    """Take the peer's `fit`, with its batches and without its network."""
    sys.path.insert(0, str(checkout))
    # Its modules make a folder for exports wherever they are imported.
    os.chdir(tempfile.mkdtemp())
    padim = importlib.import_module("indad.models").PaDiM

    def run(embeddings: np.ndarray) -> np.ndarray:
        maps = torch.from_numpy(embeddings).permute(0, 3, 1, 2).contiguous()
        model = types.SimpleNamespace(
            patch_lib=[], resize=None, d_reduced=maps.shape[1], r_indices=None, epsilon=0.04
        )
        model.extract = lambda batch: [batch]
        padim.fit(model, [(one[None], 0) for one in maps])
        return np.asarray(model.E_inv.permute(2, 3, 0, 1).flatten(0, 1).numpy()[::97])

    return run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="a folder of normal images")
    parser.add_argument("--weights")
    parser.add_argument("--anomalib", type=Path, help="folder that holds the package")
    parser.add_argument("--ind-knn-ad", type=Path, help="a checkout")
    parser.add_argument("--count", type=int, default=757, help="images, the first by name")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
