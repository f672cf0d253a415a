"""Exact nearest neighbours in a memory bank, by one matrix product and a direct check.

The squared distances |q|^2 + |c|^2 - 2 q.c, computed by a matrix product, rank the rows of the
bank. Each row that may be among the nearest, given the product's rounding, is then measured by
direct differences in float64, and ties go to the lowest row. So the answer does not depend on block
sizes, threads or the BLAS kernel. And a query that is in the bank has distance 0, where the product
alone would give up to 4e-3.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

# Queries x bank of one product: 16 M float32 = 64 MiB.
_PRODUCT = 16 * 2**20
# Pairs measured at once: 256 x 1024 float64 = 2 MiB, which stay in the cache.
_PAIRS = 256


@dataclass(frozen=True)
class ExactSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    bank: Float32[np.ndarray, "bank dim"]
    _mean: Float32[np.ndarray, " dim"]
    # (-2 (c - mean), |c - mean|^2), so that one product gives |q - c|^2 - |q|^2.
    _augmented: Float32[np.ndarray, "bank dim_1"]

    @classmethod
    def over(cls, bank: Float32[np.ndarray, "bank dim"]) -> "ExactSearch":
        """Return a search over the bank. It keeps the bank and one centred copy."""
        bank = np.ascontiguousarray(bank)
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        augmented = np.empty((bank.shape[0], bank.shape[1] + 1), np.float32)
        np.subtract(bank, mean, out=augmented[:, :-1])
        augmented[:, -1] = np.einsum("bd,bd->b", augmented[:, :-1], augmented[:, :-1])
        augmented[:, :-1] *= -2
        return cls(bank, mean, augmented)

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return len(self.bank)

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return L2 distances (not squared) and bank rows of the k nearest, nearest first.

        O(queries * bank * dim).

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out, for example those of the query's own image.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        check_asked(self.bank, queries.shape[1], k, ignore)
        size = max(1, _PRODUCT // len(self.bank))
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            distances[block], rows[block] = self._nearest_block(queries[block], k, ignore)
        return distances, rows

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        vectors: np.ndarray = self.bank[rows]
        return vectors

    def _nearest_block(
        self, queries: np.ndarray, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        beyond = None
        if ignore is not None:
            beyond = np.zeros(len(self.bank), bool)
            beyond[ignore] = True
        query, row = self.possible(queries, k, beyond)
        return measured(queries, self.bank, query, row, k)

    def possible(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        beyond: Bool[np.ndarray, "#queries bank"] | Bool[np.ndarray, " bank"] | None = None,
    ) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
        """Return the pairs of a query and a row that may be among its k nearest, for `measured`.

        Args:
            queries: In the units of the bank; all are ranked at once.
            k: At most the number of rows of each query.
            beyond: Rows to leave out, of all queries or of each.
        """
        centred = np.ones((len(queries), queries.shape[1] + 1), np.float32)
        np.subtract(queries, self._mean, out=centred[:, :-1])
        ranked = centred @ self._augmented.T
        if beyond is not None:
            np.copyto(ranked, np.inf, where=beyond)
        # A dot product of d terms errs by at most d 2^-24 |q||c|, and both q.c, twice, and |c|^2
        # are such products. For rows that are short in comparison with the query, the float64
        # distances that decide in the end err by more than that: the term with 2^-51. The 1e-35 is
        # for what float32 cannot represent.
        norms = np.linalg.norm(centred[:, :-1], axis=1)
        largest = np.sqrt(self._augmented[:, -1].max())
        error = 2**-24 * largest * (2 * norms + largest) + 2**-51 * norms * norms
        error = queries.shape[1] * error + 1e-35
        limit = ranked.min(axis=1) if k == 1 else np.partition(ranked, k - 1, axis=1)[:, k - 1]
        # Flat indices are divided, because np.nonzero of two axes takes half as long as the
        # product.
        near = np.flatnonzero(ranked <= (limit + 2 * error)[:, None])
        query, row = np.divmod(near, len(self.bank))
        return query, row


def check_asked(
    bank: Float32[np.ndarray, "bank dim"],
    query_dim: int,
    k: int,
    ignore: Int64[np.ndarray, " ignored"] | None,
) -> None:
    """Raise ValueError if fewer than k rows remain, or the dimensions differ."""
    left = len(bank) - (0 if ignore is None else len(np.unique(ignore)))
    if k > left or query_dim != bank.shape[1]:
        raise ValueError(
            f"{k} neighbours of queries of {query_dim} dimensions cannot be found among "
            f"{left} rows of {bank.shape[1]} dimensions"
        )


def measured(
    queries: Float32[np.ndarray, "queries dim"],
    bank: Float32[np.ndarray, "bank dim"],
    query: Int64[np.ndarray, " pairs"],
    row: Int64[np.ndarray, " pairs"],
    k: int,
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Return distances and rows of the k nearest among candidate pairs, by direct differences.

    All exact searches end here. So they agree to the bit, whatever proposed the candidates.

    Args:
        queries: In the units of the bank.
        bank: All rows of the bank.
        query: The number of each pair's query, in rising order. Each query has at least k pairs.
        row: The bank row of each pair.
        k: The number of neighbours of each query; ties go to the lowest row.

    Raises:
        ValueError: if a query has fewer than k pairs, as happens where values are not finite.
    """
    squared = np.empty(len(query))
    for begin in range(0, len(query), _PAIRS):
        pairs = slice(begin, begin + _PAIRS)
        difference = queries[query[pairs]].astype(np.float64)
        difference -= bank[row[pairs]]
        np.einsum("nd,nd->n", difference, difference, out=squared[pairs])
    # By query, then distance, then row: the first k of each query are its neighbours.
    order = np.lexsort((row, squared, query))
    first = np.searchsorted(query, np.arange(len(queries)))
    if (np.diff(first, append=len(query)) < k).any():
        raise ValueError(f"fewer than {k} rows can be compared: some values are not finite")
    chosen = order[first[:, None] + np.arange(k)]
    return np.sqrt(squared[chosen]).astype(np.float32), row[chosen]
