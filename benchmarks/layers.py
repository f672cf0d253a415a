r"""PatchCore with one bank of all layers, and with a bank for each (`method.layers_apart`).

    python benchmarks/layers.py FOLDER --backbone lite0
    python benchmarks/layers.py FOLDER --backbone resnet18.tv_in1k --weights resnet18.safetensors

FOLDER has one product in MVTec layout; its images are squashed to 224 x 224. For each way, and for
some radii of `method.position_radius`, a bank is selected and the test images are scored four at a
time on one thread, as a worker on a CPU does. A line for each: rows and MiB of the bank as a model
has it, image AUROC, pixel AUROC and AUPRO to 30 % as `patchlake evaluate` has them, seconds of the
selection, and milliseconds of the process for an image's search. The last two are of processor
time, so that work beside it shows less.
"""

import argparse
import time
from pathlib import Path

import faiss
import torch
from features import embedded, extractor_of, files_below
from position import Embedded, metrics_of, scored

from patchlake.pipeline.groups.loading import LoadedGroup
from patchlake.pipeline.methods.patchcore import PatchCore


def main() -> None:
    """Embed, select and score each way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--weights")
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--radius", type=int, nargs="*", default=[3])
    parser.add_argument("--every", type=int, default=1, help="take each n-th image only")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    train = files_below(arguments.folder / "train" / "good")[:: arguments.every]
    files = files_below(arguments.folder / "test")[:: arguments.every]
    print(f"{len(train)} images to fit, {len(files)} to test")
    columns = (
        "apart",
        "radius",
        "rows",
        "MiB",
        "image AUROC",
        "pixel AUROC",
        "AUPRO",
        "fit s",
        "ms",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for is_apart in (False, True):
        # Not all at a time: the embeddings of all images are gigabytes.
        method = PatchCore(layers_apart=is_apart)
        extractor = extractor_of(
            method, arguments.backbone, arguments.weights, layers=tuple(arguments.layers)
        )
        corpus, test = Embedded(embedded(extractor, train)), embedded(extractor, files)
        for radius in (None, *arguments.radius):
            method = PatchCore(layers_apart=is_apart, position_radius=radius)
            begin = time.process_time()
            found = method.fit(corpus, seed=0)  # type: ignore[arg-type] # selected by this process
            fit = time.process_time() - begin
            assert found.bank is not None
            detector = method.prepare(LoadedGroup(found.state, found.bank.rows, None, 1))
            scores, maps, pace = scored(detector, test)
            metrics = metrics_of(arguments.folder, files, scores, maps)
            told = " | ".join(f"{value:.3f}" for value in metrics)
            rows = found.bank.rows
            print(
                f"| {'yes' if is_apart else 'no'} | {radius} | {len(rows)} "
                f"| {rows.nbytes / 2**20:.2f} | {told} | {fit:.1f} | {pace:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
