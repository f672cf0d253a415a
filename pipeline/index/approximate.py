"""Approximate nearest neighbours by faiss (HNSW or IVF), measured against the exact ones.

The index only proposes. The best few of its proposals are measured by direct differences in
float64, ties to the lowest row, as `ExactSearch` ends: a distance that is returned is exact for
its row, and what can go wrong is that a nearer row was not proposed. So scores are never too low.

Below about 100,000 rows exact search is the better choice. 784 queries, CPU seconds, 100,000 rows
of 384 dimensions in 64 separate clusters:

    exact                 1.3
    hnsw, efSearch 64     0.24   recall at 1 0.998, worst error 0.73 of a score
    ivf, nprobe 16        0.20   recall at 1 0.999, worst error 0.02 of a score

A graph can miss a whole cluster, and then a normal patch scores like a defect: the worst error
tells, where recall hardly does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.index.sharded import (
    Answer,
    ShardMember,
    lowest,
    merge_nearest,
    squared_distances,
)

# Proposed beyond k. faiss orders by float32 sums: with fewer, a near tie could be cut off.
_EXTRA = 8
# Queries x candidates x dim of one re-ranking: 8 M float64 = 64 MiB.
_DIFFERENCES = 8 * 2**20


@dataclass(frozen=True)
class Quality:
    """What an approximate search loses; for model.json. Every number is from the same queries."""

    queries: int
    # Share of the queries whose nearest row, or one just as near, was found.
    recall_at_1: float
    # (found - exact) / found, of the distances to the nearest row: 0.1 where a tenth of a patch's
    # score is the index's doing, 1 where a patch that is in the bank was not found. In [0, 1].
    mean_score_error_relative: float
    max_score_error_relative: float


@dataclass(frozen=True)
class ApproximateSearch:
    """Searches the indexes of `shards.load_shards` as one bank. Build it with `over`."""

    _indexes: tuple[faiss.Index, ...]
    # Of a flat shard, over its rows; of an IVF shard, over its centroids.
    _exact: tuple[ExactSearch | None, ...]
    # First global row of each shard, and the number of all rows.
    _offsets: Int64[np.ndarray, " shards_1"]

    @classmethod
    def over(cls, indexes: Sequence[faiss.Index]) -> "ApproximateSearch":
        """Return a search over the indexes; a flat one is searched exactly, beside two copies.

        Each searches as hard as it was stored to (`effort` of `shards.to_shards`).
        """
        offsets = np.cumsum([0, *(index.ntotal for index in indexes)], dtype=np.int64)
        return cls(tuple(indexes), tuple(_exact_part(index) for index in indexes), offsets)

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return int(self._offsets[-1])

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return L2 distances (not squared) and bank rows of k near ones, nearest first.

        Always k rows: a query for which the indexes find fewer is searched exactly, which costs
        O(bank * dim). An answer does not depend on the other queries.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out. The indexes are asked for as many more.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        left = self.size - (0 if ignore is None else len(np.unique(ignore)))
        dim = self._indexes[0].d
        if k > left or queries.shape[1] != dim:
            raise ValueError(
                f"{k} neighbours of {queries.shape[1]} dimensions from {left} rows of {dim}"
            )
        queries = np.ascontiguousarray(queries)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        size = max(1, _DIFFERENCES // ((k + _EXTRA) * dim))
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            distances[block], rows[block] = self._nearest_block(queries[block], k, ignore)
        # The lists of nprobe centroids may hold fewer than k rows, and a graph may be in pieces.
        short = np.flatnonzero(rows[:, -1:] < 0)
        if len(short):
            distances[short], rows[short] = self._every_row(queries[short], k, ignore)
        return distances, rows

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        flat = rows.ravel()
        shard = np.searchsorted(self._offsets, flat, side="right") - 1
        vectors = np.empty((len(flat), self._indexes[0].d), np.float32)
        for one in np.unique(shard):
            held = shard == one
            local = flat[held] - self._offsets[one]
            vectors[held] = self._indexes[one].reconstruct_batch(local)
        return vectors.reshape(*rows.shape, vectors.shape[1])

    def _nearest_block(
        self, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        proposals = [self._propose(shard, queries, k, ignore) for shard in range(len(self._exact))]
        _, rows = lowest(
            np.concatenate([proposal[0] for proposal in proposals], axis=1),
            np.concatenate([proposal[1] for proposal in proposals], axis=1),
            k + _EXTRA,
        )
        squared = squared_distances(queries, self.vectors(np.maximum(rows, 0)))
        squared[rows < 0] = np.inf
        squared, rows = lowest(squared, rows, k)
        return np.sqrt(squared).astype(np.float32), rows

    def _propose(
        self, shard: int, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> Answer:
        """Return k and a few more rows of one shard, by float32 sums; inf, -1 where it has none."""
        index, exact, offset = self._indexes[shard], self._exact[shard], int(self._offsets[shard])
        if isinstance(index, faiss.IndexFlat):
            assert exact is not None, "over its rows"
            return ShardMember(offset, exact).answer(queries, k + _EXTRA, ignore)
        own = np.empty(0, np.int64) if ignore is None else ignore - offset
        own = own[(own >= 0) & (own < index.ntotal)]
        # All that are ignored may be nearer than the first that is not.
        wanted = min(k + _EXTRA + len(own), index.ntotal)
        if exact is None:
            squared, rows = index.search(queries, wanted)
        else:
            # faiss would choose the lists by a matrix product in large batches, by differences in
            # small ones: an answer would depend on the other queries. Where it changes depends on
            # the version: https://github.com/facebookresearch/faiss/pull/5022
            lists: Any = index  # The stubs of faiss 1.15 give search_preassigned C++'s parameters.
            near, chosen = exact.nearest(queries, lists.nprobe)
            squared, rows = lists.search_preassigned(queries, wanted, chosen, near**2)
        lost = (rows < 0) | np.isin(rows, own)
        return np.where(lost, np.inf, squared.astype(np.float64)), np.where(lost, -1, rows + offset)

    def _every_row(
        self, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact answer, with one shard's rows in memory at a time."""
        starts = self._offsets[:-1].tolist()
        return merge_nearest(
            [
                ShardMember.over(index.reconstruct_n(0, index.ntotal), start).answer(
                    queries, k, ignore
                )
                for start, index in zip(starts, self._indexes, strict=True)
            ]
        )


def measure(
    search: Search,
    oracle: Search,
    queries: Float32[np.ndarray, "queries dim"],
    *,
    are_rows: bool = False,
) -> Quality:
    """Return what the search loses on the queries. Costs one exact search of them.

    Args:
        search: Over the same bank as the oracle.
        oracle: An exact search.
        queries: Held-out normal patches, at least one: rows of a coreset were chosen to be far
            apart.
        are_rows: They are rows of the bank, where there are no others; each of them finds itself
            first, and is measured by its second neighbour.
    """
    k = 2 if are_rows and search.size > 1 else 1
    found = search.nearest(queries, k)[0][:, -1].astype(np.float64)
    exact = oracle.nearest(queries, k)[0][:, -1].astype(np.float64)
    error = np.divide(found - exact, found, out=np.zeros_like(found), where=found > 0)
    return Quality(
        queries=len(queries),
        recall_at_1=float((found == exact).mean()),
        mean_score_error_relative=float(error.mean()),
        max_score_error_relative=float(error.max()),
    )


def _exact_part(index: faiss.Index) -> ExactSearch | None:
    if isinstance(index, faiss.IndexFlat):
        return ExactSearch.over(index.reconstruct_n(0, index.ntotal))
    if isinstance(index, faiss.IndexIVFFlat):
        centroids = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)
        return ExactSearch.over(centroids)
    return None
