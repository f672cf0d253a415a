r"""PatchCore near places: metrics and the time of a search by `method.position_radius`.

    python benchmarks/position.py FOLDER --backbone lite0 --radius 0 1 3 7

FOLDER has one product in MVTec layout. All images are embedded once, squashed to 224 x 224; then a
bank is selected for no radius and for each that is named, and the test images are scored four at a
time on one thread, as a worker on a CPU does. A line for each: rows of the bank, covering radius,
image AUROC, pixel AUROC and AUPRO to 30 % as `patchlake evaluate` has them, seconds of the
selection, and milliseconds of the process for an image's search. The last is of processor time, so
that work beside it shows less.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import torch
from features import embedded, extractor_of, files_below

from patchlake.pipeline.evaluation.pixels import PixelCurves
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.groups.loading import LoadedGroup
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.masks import decode_mask
from patchlake.pipeline.methods.patchcore import PatchCore, PatchCoreDetector
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.stages.compare import FRAME

T = TypeVar("T")
# Images of a fragment, and images that are scored together.
_FRAGMENT, _TOGETHER = 256, 4


@dataclass(frozen=True)
class Embedded:
    """A corpus in the memory of this process, which alone works on it."""

    patches: np.ndarray
    processes: int = 1
    memory_budget: int = 2**40
    threads: int = 1

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.patches)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""
        return {"patches": self.patches.shape[1:]}

    def embeddings(self) -> Iterator[Arrays]:
        """Yield the fragments."""
        for first in range(0, self.images, _FRAGMENT):
            yield {"patches": self.patches[first : first + _FRAGMENT]}

    def each(self, work: Callable[[Arrays, int], T]) -> Iterator[T]:
        """Yield the results of `work` on each fragment."""
        for number, fragment in enumerate(self.embeddings()):
            yield work(fragment, number * _FRAGMENT)


def main() -> None:
    """Embed, then select and score for each radius."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--weights")
    parser.add_argument("--radius", type=int, nargs="*", default=[0, 1, 3, 7])
    parser.add_argument("--every", type=int, default=1, help="take each n-th image only")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    extractor = extractor_of(PatchCore(), arguments.backbone, arguments.weights)
    train = files_below(arguments.folder / "train" / "good")[:: arguments.every]
    files = files_below(arguments.folder / "test")[:: arguments.every]
    corpus = Embedded(embedded(extractor, train)["patches"])
    test = embedded(extractor, files)["patches"]
    print(f"{len(train)} images to fit, {len(files)} to test, {corpus.shapes['patches']}")
    print("| radius | rows | covering radius | image AUROC | pixel AUROC | AUPRO | fit s | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for radius in (None, *arguments.radius):
        method = PatchCore(position_radius=radius)
        begin = time.process_time()
        found = method.fit(corpus, seed=0)  # type: ignore[arg-type] # selected by this process
        fit = time.process_time() - begin
        assert found.bank is not None
        searched = method.prepare(LoadedGroup(found.state, found.bank.rows, None, 1))
        scores, maps, pace = _scored(searched, test)
        metrics = metrics_of(arguments.folder, files, scores, maps)
        told = " | ".join(f"{value:.3f}" for value in metrics)
        print(
            f"| {radius} | {len(found.bank.rows)} | {found.facts['covering_radius']:.2f} | {told} "
            f"| {fit:.1f} | {pace:.2f} |",
            flush=True,
        )


def _scored(detector: PatchCoreDetector, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return scores, maps, and the median milliseconds of an image."""
    parts, paces = [], []
    for first in range(0, len(test), _TOGETHER):
        some = test[first : first + _TOGETHER]
        begin = time.process_time()
        parts.append(detector.score({"patches": some}))
        paces.append((time.process_time() - begin) / len(some) * 1000)
    maps = [part.anomaly_maps for part in parts if part.anomaly_maps is not None]
    scores = np.concatenate([part.image_scores for part in parts])
    return scores, np.concatenate(maps), float(np.median(paces))


def metrics_of(
    folder: Path, files: list[Path], scores: np.ndarray, maps: np.ndarray
) -> tuple[float, float, float]:
    """Return image AUROC, pixel AUROC and AUPRO."""
    geometry, curves = Geometry((224, 224), None), PixelCurves()
    is_anomalous = np.array([path.parent.name != "good" for path in files])
    for path, grid in zip(files, maps, strict=True):
        mask = np.zeros(FRAME, bool)
        if path.parent.name != "good":
            file = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = decode_mask(file.read_bytes(), FRAME, Limits()).is_defect
        curves.add(geometry.to_frame(grid, (FRAME[1], FRAME[0]), FRAME), mask)
    image = auroc(scores.astype(np.float64), is_anomalous)
    return image or 0.0, curves.auroc() or 0.0, curves.aupro() or 0.0


if __name__ == "__main__":
    main()
