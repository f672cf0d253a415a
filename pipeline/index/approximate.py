"""Approximate nearest neighbours by faiss (HNSW or IVF), and how much they lose.

The index only proposes rows. The best few of them are measured by direct differences in float64,
and ties go to the lowest row, as in `ExactSearch`. So each distance that is returned is exact for
its row. All that can go wrong is that a nearer row was not proposed: scores are never too low.

Below about 100,000 rows exact search is the better choice. CPU seconds for 784 queries in 100,000
rows of 384 dimensions in 64 separate clusters:

    exact                 1.3
    hnsw, efSearch 64     0.24   recall at 1 0.998, worst error 0.73 of a score
    ivf, nprobe 16        0.20   recall at 1 0.999, worst error 0.02 of a score

A graph can miss a whole cluster, and a normal patch then scores like a defect. The worst error
shows that, while the recall hardly does.
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

# Rows proposed beyond k. faiss orders rows by float32 sums, by which the nearer of two rows that
# are almost as near may come second.
_EXTRA = 8
# Queries x candidates x dim of one re-ranking: 8 M float64 = 64 MiB.
_DIFFERENCES = 8 * 2**20


@dataclass(frozen=True)
class Quality:
    """What an approximate search loses, for model.json. All numbers are of the same queries."""

    queries: int
    # The share of queries for which the nearest row, or one just as near, was found.
    recall_at_1: float
    # (found - exact) / found, of the distances to the nearest row, in [0, 1]. It is 0.1 where a
    # tenth of a patch's score comes from the approximation, and 1 where the patch itself is in the
    # bank and was not found.
    mean_score_error_relative: float
    max_score_error_relative: float


@dataclass(frozen=True)
class ApproximateSearch:
    """Searches the indexes of `shards.load_shards` as one bank. Build it with `over`."""

    _indexes: tuple[faiss.Index, ...]
    # For a flat shard, a search over its rows; for an IVF shard, over its centroids; else None.
    _exact: tuple[ExactSearch | None, ...]
    # First global row of each shard, and the number of all rows.
    _offsets: Int64[np.ndarray, " shards_1"]

    @classmethod
    def over(cls, indexes: Sequence[faiss.Index]) -> "ApproximateSearch":
        """Return a search over the indexes, whose rows one after the other are the bank.

        Each index searches with the effort that is stored in it (see `shards.to_shards`). A flat
        one is searched exactly, for which two more copies of its rows are in memory.
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
        """Return L2 distances (not squared) and bank rows of k near neighbours, nearest first.

        There are always k: where the indexes find fewer for a query, it is searched for exactly,
        which takes O(bank * dim). The answer for a query does not depend on the other queries.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out. The indexes are asked for so many rows more.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        left = self.size - (0 if ignore is None else len(np.unique(ignore)))
        dim = self._indexes[0].d
        if k > left or queries.shape[1] != dim:
            raise ValueError(
                f"{k} neighbours of queries of {queries.shape[1]} dimensions cannot be found among "
                f"{left} rows of {dim} dimensions"
            )
        queries = np.ascontiguousarray(queries)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        size = max(1, _DIFFERENCES // ((k + _EXTRA) * dim))
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            distances[block], rows[block] = self._nearest_block(queries[block], k, ignore)
        # The lists of nprobe centroids may hold fewer than k rows, and a graph may have pieces
        # without links between them.
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
            inside = shard == one
            local = flat[inside] - self._offsets[one]
            vectors[inside] = self._indexes[one].reconstruct_batch(local)
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
        """Return k and a few more near rows of one shard; see `sharded.Answer`."""
        index, exact, offset = self._indexes[shard], self._exact[shard], int(self._offsets[shard])
        if isinstance(index, faiss.IndexFlat):
            assert exact is not None, "over its rows"
            return ShardMember(offset, exact).answer(queries, k + _EXTRA, ignore)
        own = np.empty(0, np.int64) if ignore is None else ignore - offset
        own = own[(own >= 0) & (own < index.ntotal)]
        # All rows that are ignored may be nearer than the first one that is not.
        count = min(k + _EXTRA + len(own), index.ntotal)
        if exact is None:
            squared, rows = index.search(queries, count)
        else:
            # faiss itself would choose the lists by a matrix product in large batches, and by
            # differences in small ones, so that an answer would depend on the other queries. Which
            # batches are large depends on its version:
            # https://github.com/facebookresearch/faiss/pull/5022
            lists: Any = index  # The stubs of faiss 1.15 give search_preassigned C++'s parameters.
            near, nearest_lists = exact.nearest(queries, lists.nprobe)
            squared, rows = lists.search_preassigned(queries, count, nearest_lists, near**2)
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
    """Return what an approximate search loses on some queries. Takes one exact search of them.

    Args:
        search: The approximate search.
        oracle: An exact search over the same bank.
        queries: At least one. They should be held-out normal patches: rows of a coreset are not
            typical, as they were chosen to be far apart.
        are_rows: Whether they are rows of the bank, because there are no others. A row finds itself
            first, so that its second neighbour is compared.
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
