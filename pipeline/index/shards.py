"""Write a memory bank as faiss index files, the shards, and read it again.

The rows of all shards one after the other are the bank. In every kind of file they are float32:
"flat" is the rows alone. "hnsw" adds a graph (Malkov and Yashunin, "Efficient and robust
approximate nearest neighbor search using HNSW graphs", TPAMI 2020), 2 x 32 links x 4 bytes = 256
bytes a row. "ivf" groups the rows by the nearest of about 4 sqrt(rows) centroids. No kind
compresses the rows, so the exact bank can be read from all three.

A file depends on its rows only, not on the number of threads. To write 10,000 and 100,000 rows of
384 dimensions takes one thread 0.0 and 0.4 CPU seconds for flat, 2 and 40 for hnsw, and 0.4 and 14
for ivf.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import faiss
import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.errors import ModelError

Kind = Literal["flat", "hnsw", "ivf"]

_CLASSES = {"flat": faiss.IndexFlat, "hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat}

# A shard is well below the size that object stores accept in a single put.
_SHARD_BYTES = 256 * 2**20
# 8 shards x 256 MiB x 2 (an index and its file) = 4 GiB while shards are built.
_BUILDERS = 8
# M of the paper: links a row, twice as many in the lowest layer.
_LINKS = 32
# efConstruction. A graph is worst at finding rows in separate clusters. For 100,000 rows in 64 of
# them and efSearch 64, recall at 1 is 0.987 with 80 (19 s to build) and 0.998 with 200 (40 s).
# faiss's own 40 gives 0.97 at 20,000 rows.
_CONSTRUCTION = 200
_EF_SEARCH = 64
_NPROBE = 16
# With fewer rows a centroid, k-means would fit noise; faiss warns below the same number.
_ROWS_PER_CENTROID = 39


def to_shards(
    bank: Float32[np.ndarray, "bank dim"],
    *,
    kind: Kind = "flat",
    effort: int | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> dict[str, bytes]:
    """Return file name -> content of the bank's shards, of about equal size.

    Equal arguments give equal bytes. hnsw takes O(rows * log rows * dim), ivf
    O(rows ** 1.5 * dim) a shard.

    Args:
        bank: At least one row.
        kind: How each shard is stored.
        effort: efSearch of "hnsw" (by default 64) or nprobe of "ivf" (16), which is kept in the
            file: more is slower and finds more. "flat" has none.
        shard_bytes: The size of a shard's rows; the graph of "hnsw" comes on top.
    """
    count = max(1, min(len(bank), -(-bank.nbytes // shard_bytes)))
    build = partial(_file, kind=kind, effort=effort)
    # No more threads than faiss would use by itself, which follows OMP_NUM_THREADS.
    builders = min(count, _BUILDERS, faiss.omp_get_max_threads())
    with ThreadPoolExecutor(builders) as pool:
        files = list(pool.map(build, np.array_split(bank, count)))
    return dict(zip(_names(count), files, strict=True))


def load_shards(contents: Mapping[str, bytes], *, kind: Kind = "flat") -> list[faiss.Index]:
    """Return the indexes of the files that `to_shards` wrote, in the order of their rows.

    All of them can return rows by number, for which "ivf" takes 8 bytes a row.

    Raises:
        ModelError: if a shard is missing or of another kind.
    """
    count = next(iter(contents), "").rpartition("-")[2].removesuffix(".faiss")
    if not count.isdecimal() or sorted(contents) != _names(int(count)):
        raise ModelError(
            f"of the memory bank's shards {len(contents)} are there: {sorted(contents)}"
        )
    return [_loaded(name, contents[name], kind) for name in sorted(contents)]


def from_shards(
    contents: Mapping[str, bytes], *, kind: Kind = "flat"
) -> Float32[np.ndarray, "bank dim"]:
    """Return the bank that `to_shards` wrote, bit for bit.

    Raises:
        ModelError: if a shard is missing or of another kind.
    """
    indexes = load_shards(contents, kind=kind)
    return np.concatenate([index.reconstruct_n(0, index.ntotal) for index in indexes])


def _names(count: int) -> list[str]:
    return [f"index-{number:05d}-of-{count:05d}.faiss" for number in range(count)]


def _file(rows: Float32[np.ndarray, "rows dim"], *, kind: Kind, effort: int | None) -> bytes:
    """Return one shard's file. To be called in a thread of the pool of `to_shards`."""
    # OpenMP keeps this number for each thread, so that the caller's stays as it is. faiss 1.15.1
    # has built equal files with more threads, too, but promises that for one thread only: links
    # depend on the order of insertion, and the sums of k-means on how they are split.
    faiss.omp_set_num_threads(1)
    index = _empty(rows, kind, effort)
    index.add(np.ascontiguousarray(rows))
    content: bytes = faiss.serialize_index(index).tobytes()
    return content


def _empty(rows: Float32[np.ndarray, "rows dim"], kind: Kind, effort: int | None) -> faiss.Index:
    if kind == "ivf":
        return _trained(rows, effort or _NPROBE)
    if kind == "flat":
        return faiss.IndexFlatL2(rows.shape[1])
    index = faiss.IndexHNSWFlat(rows.shape[1], _LINKS)
    index.hnsw.efConstruction = _CONSTRUCTION
    index.hnsw.efSearch = effort or _EF_SEARCH
    return index


def _trained(rows: Float32[np.ndarray, "rows dim"], nprobe: int) -> faiss.IndexIVFFlat:
    lists = round(4 * len(rows) ** 0.5)
    nlist = max(1, min(lists, len(rows) // _ROWS_PER_CENTROID))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], nlist)
    index.nprobe = min(nprobe, nlist)
    # A shard of a few rows has a single centroid, of which faiss need not warn on stderr.
    index.cp.min_points_per_centroid = 1
    index.train(np.ascontiguousarray(rows))
    return index


def _loaded(name: str, content: bytes, kind: Kind) -> faiss.Index:
    index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    if not isinstance(index, _CLASSES[kind]):
        raise ModelError(f"{name} is a {type(index).__name__}, not a {kind} index")
    if isinstance(index, faiss.IndexIVFFlat):
        index.make_direct_map()
    return index
