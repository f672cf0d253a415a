"""Exact search over a bank whose shards are split over several processes.

Each shard answers with its own k nearest rows, and the nearest of all answers are taken. The
answers have squared distances in float64, because these are the numbers by which `ExactSearch`
orders the rows of a whole bank. Rows that differ in float64 may tie in float32, so that with
float32 the merge might take another row than the search of the whole bank, and Eq. 7 of PatchCore
another score. As it is, distances and rows are bit for bit those of the search without shards.

How the shards are asked is up to the caller: nothing in this module knows of processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Float32, Float64, Int64

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.search import Search

# Squared distances and global rows (queries, k) of one shard, nearest first, and inf and -1 where a
# shard has fewer than k rows. A neighbour takes 16 bytes: an image of 784 patches, 12.5 KB a shard.
Answer = tuple[Float64[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]
# (queries, k, ignored global rows) -> an answer of every shard.
Ask = Callable[[np.ndarray, int, np.ndarray | None], Sequence[Answer]]
# From a mapping of shard number to global rows, to one of shard number to the rows' vectors.
Fetch = Callable[[Mapping[int, np.ndarray]], Mapping[int, np.ndarray]]


@dataclass(frozen=True)
class ShardMember:
    """One shard: the bank's rows from `offset` on."""

    offset: int
    search: Search

    @classmethod
    def over(cls, rows: Float32[np.ndarray, "rows dim"], offset: int) -> "ShardMember":
        """Return a shard that is searched by dense products.

        Args:
            rows: At least one.
            offset: The global row of the first of them.
        """
        return cls(offset, ExactSearch.over(rows))

    def answer(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Answer:
        """Return the k nearest rows of this shard, with global row numbers; see `Answer`.

        Args:
            queries: In the units of the bank.
            k: May exceed the number of the shard's rows.
            ignore: Global rows to leave out; they may be in other shards.
        """
        own = None if ignore is None else np.unique(ignore) - self.offset
        if own is not None:
            own = own[(own >= 0) & (own < self.search.size)]
        found = min(k, self.search.size - (0 if own is None else len(own)))
        squared = np.full((len(queries), k), np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        if found > 0:
            _, local = self.search.nearest(queries, found, ignore=own)
            squared[:, :found] = squared_distances(queries, self.search.vectors(local))
            rows[:, :found] = local + self.offset
        return squared, rows

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return the vectors of global rows, all of this shard."""
        return self.search.vectors(rows - self.offset)


@dataclass(frozen=True)
class ShardedSearch:
    """Searches shards as if they were one bank."""

    # Rows of each shard; shard 0 begins with global row 0.
    sizes: tuple[int, ...]
    ask: Ask
    fetch: Fetch

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return sum(self.sizes)

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return L2 distances (not squared) and bank rows of the k nearest, nearest first.

        All queries visit all shards.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out.

        Raises:
            ValueError: if fewer than k rows remain.
        """
        left = self.size - (0 if ignore is None else len(np.unique(ignore)))
        if k > left:
            raise ValueError(
                f"{k} neighbours cannot be found among {left} rows in {len(self.sizes)} shards"
            )
        return merge_nearest(self.ask(queries, k, ignore))

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows, fetched from the shards that hold them and from no other."""
        flat = rows.ravel()
        shard = np.searchsorted(list(accumulate(self.sizes)), flat, side="right")
        # Without rows, shard 0 is asked for an empty array, as only a shard knows the dimension.
        by_shard = {int(one): flat[shard == one] for one in np.unique(shard)} or {0: flat}
        fetched = self.fetch(by_shard)
        dim = next(iter(fetched.values())).shape[-1]
        vectors = np.empty((len(flat), dim), np.float32)
        for one in by_shard:
            vectors[shard == one] = fetched[one]
        return vectors.reshape(*rows.shape, dim)


def merge_nearest(
    answers: Sequence[Answer],
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Return L2 distances (not squared) and global rows of the k nearest over all shards.

    Ties go to the lowest row. The order of the answers does not matter.

    Args:
        answers: Those of all shards, at least one, to the same queries and k.
    """
    k = answers[0][0].shape[1]
    squared, rows = lowest(
        np.concatenate([answer[0] for answer in answers], axis=1),
        np.concatenate([answer[1] for answer in answers], axis=1),
        k,
    )
    return np.sqrt(squared).astype(np.float32), rows


def lowest(
    squared: Float64[np.ndarray, "queries candidates"],
    rows: Int64[np.ndarray, "queries candidates"],
    k: int,
) -> Answer:
    """Return the first k candidates of each query by distance, then row."""
    order = np.lexsort((rows, squared), axis=-1)[:, :k]
    return np.take_along_axis(squared, order, axis=1), np.take_along_axis(rows, order, axis=1)


def squared_distances(
    queries: Float32[np.ndarray, "queries dim"],
    vectors: Float32[np.ndarray, "queries candidates dim"],
) -> Float64[np.ndarray, "queries candidates"]:
    """Return |query - vector|^2 by direct differences, to the bit what `ExactSearch` compares."""
    difference = queries.astype(np.float64)[:, None, :] - vectors
    # The same sum over the same layout as in ExactSearch: another order of additions, another bit.
    flat = difference.reshape(-1, queries.shape[1])
    squared: np.ndarray = np.einsum("nd,nd->n", flat, flat)
    return squared.reshape(vectors.shape[:2])
