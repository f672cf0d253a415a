r"""SPADE's search among the pixels of retrieved images: ours against dense products.

    python benchmarks/spade.py TRAIN --test FOLDER... --weights FILE --layers 1 2 3

TRAIN is a folder of normal images, whose features are kept in float16 as in a model; `--images` of
the test folders' images, evenly spread, retrieve `--retrieved` of them each. The contenders take
turns, image by image; the table has medians of milliseconds an image, and the largest absolute
difference from float64 on every 49th pixel. Ours is timed with the retrieved images in memory;
`load` is what it takes to bring in one image that is not.

    ours    pipeline.index.galleries
    exact   pipeline.index.exact over the retrieved pixels, for its index is built for each image
    torch   |q|^2 + |c|^2 - 2 q.c in float32, 3136 rows at a time, and the minimum
    place   same location only: the variant of ind_knn_ad
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from features import embedded, evenly, extractor_of, files_below
from threadpoolctl import threadpool_limits

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.galleries import Galleries
from patchlake.pipeline.methods.spade import SPADE

# An image's float32 rows, layer by layer.
Maps = list[np.ndarray]
_ROWS = 3136


def main() -> None:
    """Embed, time, and print one line a contender."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        train, test = _embed(arguments)
        _compare(train, test, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--backbone", default="resnet18.tv_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--train-images", type=int, default=200)
    parser.add_argument("--images", type=int, default=15)
    parser.add_argument("--retrieved", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _embed(arguments: argparse.Namespace) -> tuple[dict, dict]:
    extractor = extractor_of(
        SPADE(),
        arguments.backbone,
        arguments.weights,
        layers=tuple(arguments.layers),
    )
    files = evenly(files_below(arguments.train), arguments.train_images)
    train = embedded(extractor, files)
    kept = {name: array.astype(np.float16) for name, array in train.items() if name != "pooled"}
    test = embedded(extractor, evenly(files_below(*arguments.test), arguments.images))
    return kept | {"pooled": train["pooled"]}, test


def _maps(embeddings: dict, image: int) -> Maps:
    maps = [embeddings[name][image] for name in sorted(embeddings) if name != "pooled"]
    return [np.float32(one.reshape(-1, one.shape[-1])) for one in maps]


def _compare(train: dict, test: dict, arguments: argparse.Namespace) -> None:
    count = len(train["pooled"])
    # Room for all: what it takes to load them is timed by itself.
    galleries = Galleries(partial(_maps, train), count, budget=2**40, threads=arguments.threads)
    start = time.perf_counter()
    for number in range(count):
        galleries.same_place(_maps(test, 0), [number], 1)
    print(f"{count} images, load {(time.perf_counter() - start) / count * 1e3:.1f} ms")
    retrieve = ExactSearch.over(train["pooled"]).nearest
    _, retrieved = retrieve(test["pooled"], min(arguments.retrieved, count))
    contenders: dict[str, Callable[[Maps, list[int], list[np.ndarray]], Maps]] = {
        "ours": lambda queries, numbers, _: galleries.nearest(queries, numbers, 1),
        "exact": lambda queries, _, rows: [
            ExactSearch.over(c).nearest(q, 1)[0] for q, c in zip(queries, rows, strict=True)
        ],
        "torch": lambda queries, _, rows: list(map(_product, queries, rows)),
        "place": lambda queries, numbers, _: galleries.same_place(queries, numbers, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    errors = dict.fromkeys(contenders, 0.0)
    for image, chosen in enumerate(retrieved):
        queries = _maps(test, image)
        gallery = [_maps(train, number) for number in chosen.tolist()]
        rows = [np.concatenate(layer) for layer in zip(*gallery, strict=True)]
        truth = [_truth(q[::49], c) for q, c in zip(queries, rows, strict=True)]
        for name, contender in contenders.items():
            start = time.perf_counter()
            found = contender(queries, chosen.tolist(), rows)
            times[name].append((time.perf_counter() - start) * 1e3)
            away = (np.abs(f[::49, 0] - t).max() for f, t in zip(found, truth, strict=True))
            errors[name] = max(errors[name], *away)
    for name, taken in times.items():
        median = float(np.median(taken))
        error = "other question" if name == "place" else f"error {errors[name]:.1e}"
        print(f"{name:6}{median:9.1f} ms  x{np.median(times['exact']) / median:5.1f}  {error}")


def _product(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    asked, bank = torch.from_numpy(queries), torch.from_numpy(rows)
    lengths = bank.square().sum(dim=1)
    best = torch.full((len(asked),), torch.inf)
    for begin in range(0, len(bank), _ROWS):
        block = slice(begin, begin + _ROWS)
        scores = torch.addmm(lengths[block], asked, bank[block].T, alpha=-2)
        best = torch.minimum(best, scores.amin(dim=1))
    return (best + asked.square().sum(dim=1)).clamp(min=0).sqrt()[:, None].numpy()


def _truth(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return distances by differences in float64, query by query."""
    wide = rows.astype(np.float64)
    return np.array([np.sqrt(np.square(wide - q).sum(axis=1).min()) for q in queries])


if __name__ == "__main__":
    main()
