r"""Nearest-neighbour search: ours against the dense product, faiss and torch, on real features.

    python benchmarks/search.py TRAIN --normal FOLDER --defective FOLDER... --weights FILE

TRAIN is a folder of normal images that the bank is taken from; the queries are the patches of
other images, one image at a time. Banks up to `--greedy` rows are prefixes of one greedy coreset;
larger ones are random rows, because selecting them takes minutes. `--isotropic` banks and their
queries are Gaussian noise, of which no bound rules out anything: the worst case of ours.

All contenders have the same number of threads and take turns, image by image in another order, in
memory that the process keeps; the table has medians of milliseconds an image, wall and processor
time, and the ratio to our dense search. `product` is the bare float32 product of the same shape by
numpy's BLAS: what no dense search can beat. Errors are the largest absolute ones against float64,
on images and on rows of the bank, whose distance is 0.

    product   numpy.matmul into memory that is there already
    dense     patchlake.pipeline.index.exact
    faiss     IndexFlatL2, as it comes
    cdist     torch.cdist(...).min
    matmul    |q|^2 + |c|^2 - 2 q.c in torch, then min
    ours      pipeline.index.choose.search_over
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch
from features import embedded, evenly, extractor_of, files_below
from threadpoolctl import threadpool_info, threadpool_limits

from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.maths.coreset import greedy
from patchlake.pipeline.methods.patchcore import PatchCore

# Of glibc's malloc.h. Left alone, it gives what the products freed, 31 MB each, back to the system
# in a later call: 4 to 8 ms in the middle of whatever runs then.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# Images before the clock starts: ours finds out in its first eight calls whether pruning pays.
_WARM_UP = 8

Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class Times:
    """Milliseconds an image."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main() -> None:
    """Parse, embed, and print one table a bank."""
    arguments = _arguments()
    _keep_memory()
    train, normal, defective = _embed(arguments)
    print(
        f"{len(train)} training patches of {train.shape[1]} dimensions; {arguments.threads} threads"
    )
    with threadpool_limits(arguments.threads):
        torch.set_num_threads(arguments.threads)
        kernels = {f"{i.get('architecture')}" for i in threadpool_info() if i["user_api"] == "blas"}
        print(f"BLAS kernels: {', '.join(sorted(kernels))}")
        for size, bank, how in _banks(train, arguments):
            _compare(
                f"{size} {how} rows", bank, {"normal": normal, "defective": defective}, arguments
            )
        for size in arguments.isotropic:
            rng = np.random.default_rng(0)
            bank = rng.standard_normal((size, train.shape[1]), np.float32)
            queries = rng.standard_normal(normal.shape, np.float32)
            _compare(f"{size} isotropic rows", bank, {"normal": queries}, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("--normal", type=Path, required=True)
    parser.add_argument("--defective", type=Path, required=True, nargs="+")
    parser.add_argument("--backbone", default="resnet18.tv_in1k")
    parser.add_argument("--weights")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--train-images", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--greedy", type=int, default=10_000, help="largest bank selected greedily")
    parser.add_argument("--isotropic", type=int, nargs="*", default=[], help="banks of noise")
    parser.add_argument("--repeats", type=int, default=15, help="images of each kind")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _keep_memory() -> None:
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "mallopt"):
        malloc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        malloc.mallopt(_M_MMAP_MAX, 0)


def _embed(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training patches (rows, dim), normal and defective images (images, patches, dim)."""
    extractor = extractor_of(
        PatchCore(),
        arguments.backbone,
        arguments.weights,
        layers=tuple(arguments.layers),
    )

    def embed(folders: list[Path], count: int) -> np.ndarray:
        embeddings = embedded(extractor, evenly(files_below(*folders), count))["patches"]
        return embeddings.reshape(len(embeddings), -1, embeddings.shape[-1])

    train = embed([arguments.train], arguments.train_images)
    normal = embed([arguments.normal], arguments.repeats)
    defective = embed(arguments.defective, arguments.repeats)
    return train.reshape(-1, train.shape[-1]), normal, defective


def _banks(train: np.ndarray, arguments: argparse.Namespace) -> list[tuple[int, np.ndarray, str]]:
    largest = max([size for size in arguments.rows if size <= arguments.greedy], default=0)
    selected = greedy(train, largest, threads=arguments.threads).indices if largest else None
    shuffled = np.random.default_rng(0).permutation(len(train))
    banks = []
    for size in arguments.rows:
        is_greedy = size <= arguments.greedy and selected is not None
        rows = selected[:size] if is_greedy and selected is not None else shuffled[:size]
        banks.append((size, train[rows], "greedy" if is_greedy else "random"))
    return banks


def _compare(
    title: str, bank: np.ndarray, queries: dict[str, np.ndarray], arguments: argparse.Namespace
) -> None:
    start = time.perf_counter()
    ours = search_over(ExactSearch.over(bank), threads=arguments.threads)
    loaded = time.perf_counter() - start
    print(f"\n{title}: {ours.components} components chosen, loaded in {loaded:.2f} s")
    searches = _searches(bank, ours.nearest, ours.dense.nearest)
    times = {kind: {name: Times() for name in searches} for kind in queries}
    _warm_up(searches, queries["normal"])
    for kind, images in queries.items():
        for number, image in enumerate(images):
            for name in _turn(list(searches), number):
                _time(searches[name], image, times[kind][name])
    checked = np.concatenate([images[0] for images in queries.values()])
    truth = _truth(bank, checked)
    zeros = bank[:784]
    print(
        f"{'':9}"
        + "".join(f"{kind + ' wall':>16}{'x':>6}{'cpu':>8}{'x':>6}" for kind in queries)
        + f"{'error':>10}{'at 0':>10}"
    )
    for name, search in searches.items():
        cells = ""
        for kind in queries:
            one, dense = times[kind][name], times[kind]["dense"]
            wall, cpu = np.median(one.wall), np.median(one.cpu)
            cells += f"{wall:16.1f}{np.median(dense.wall) / wall:6.2f}"
            cells += f"{cpu:8.1f}{np.median(dense.cpu) / cpu:6.2f}"
        if name == "product":
            flop = 2 * len(queries["normal"][0]) * bank.size
            peak = flop / np.median(times["normal"][name].cpu) / 1e6
            print(f"{name:9}{cells}   {peak:.0f} GFLOP/s a core")
            continue
        error, at_zero = np.abs(search(checked) - truth).max(), np.abs(search(zeros)).max()
        print(f"{name:9}{cells}{error:10.1e}{at_zero:10.1e}")


def _turn(names: list[str], number: int) -> list[str]:
    """Return the names in the number's order: what ran before may leave threads that spin."""
    order = list(np.random.default_rng(number).permutation(len(names)))
    return [names[place] for place in order]


def _warm_up(searches: dict[str, Search], images: np.ndarray) -> None:
    for image in images[:_WARM_UP]:
        for search in searches.values():
            search(image)


def _searches(bank: np.ndarray, ours: Callable, dense: Callable) -> dict[str, Search]:
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    rows = torch.from_numpy(bank)
    lengths = rows.square().sum(dim=1)
    product = np.empty((784, len(bank)), np.float32)

    def matmul(queries: np.ndarray) -> np.ndarray:
        asked = torch.from_numpy(queries)
        squared = lengths - 2 * asked @ rows.T + asked.square().sum(dim=1, keepdim=True)
        return squared.amin(dim=1).clamp(min=0).sqrt().numpy()

    return {
        "product": lambda q: np.matmul(q, bank.T, out=product[: len(q)]),
        "dense": lambda q: dense(q, 1)[0][:, 0],
        "faiss": lambda q: np.sqrt(np.maximum(index.search(q, 1)[0][:, 0], 0)),
        "cdist": lambda q: torch.cdist(torch.from_numpy(q), rows).amin(dim=1).numpy(),
        "matmul": matmul,
        "ours": lambda q: ours(q, 1)[0][:, 0],
    }


def _time(search: Search, image: np.ndarray, times: Times) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    search(image)
    times.wall.append((time.perf_counter() - wall) * 1e3)
    times.cpu.append((time.process_time() - cpu) * 1e3)


def _truth(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return distances in float64, of which a product only names the row."""
    mean = bank.mean(axis=0, dtype=np.float64)
    centred, rows = bank - mean, np.empty(len(queries), np.int64)
    lengths = np.einsum("nd,nd->n", centred, centred)
    for begin in range(0, len(queries), 256):
        block = slice(begin, begin + 256)
        rows[block] = (lengths - 2 * (queries[block] - mean) @ centred.T).argmin(axis=1)
    return np.linalg.norm(queries.astype(np.float64) - bank[rows], axis=1)


if __name__ == "__main__":
    main()
