"""Candidates among the bank rows of places near a query's, by scanning them: for few rows.

The rows of each place of the grid are a list of faiss's IVF index, and a query visits the lists
that are near it, which are known and need not be searched for. faiss gives the smallest squared
distances in float32 by direct differences. Where these leave open, given their rounding, which rows
are the nearest, all rows that are near the query are candidates.

A pair takes about 3 + 0.09 dim ns; a product with all rows would take a tenth, and of all rows.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Float32, Int64

# Neighbours that are asked for beyond k, so that a tie seldom leaves anything open.
_MORE = 3
_UNIT = 2.0**-24


@dataclass(frozen=True)
class PlaceLists:
    """The rows of a bank, listed by place. Build it with `over`."""

    index: faiss.IndexIVFFlat
    # The places near each place, as numbers of lists, and -1 beyond the border of the grid.
    near: Int64[np.ndarray, "cells lists"]
    dim: int

    @classmethod
    def over(
        cls,
        bank: Float32[np.ndarray, "bank dim"],
        cells: Int64[np.ndarray, " bank"],
        near: Int64[np.ndarray, "cells lists"],
    ) -> "PlaceLists":
        """Return the lists of a bank, which have a copy of it.

        Args:
            bank: The rows.
            cells: The number of each row's place.
            near: Of each place the numbers of those near it, itself among them; -1 is none.
        """
        count, dim = bank.shape
        # faiss asks a quantizer how many lists there are, and here nothing else of it.
        lists = faiss.IndexFlatL2(dim)
        lists.add(np.zeros((len(near), dim), np.float32))
        index = faiss.IndexIVFFlat(lists, dim, len(near), faiss.METRIC_L2)
        index.is_trained = True
        numbers = np.arange(count)
        arrays = [np.ascontiguousarray(one) for one in (bank, numbers, cells.astype(np.int64))]
        index.add_core(count, *map(faiss.swig_ptr, arrays))
        return cls(index, near, dim)

    def candidates(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        cells: Int64[np.ndarray, " queries"],
        k: int,
        ignore: Int64[np.ndarray, " ignored"] | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs that hold the k nearest of each query but of some, and which these are.

        Args:
            queries: In the units of the bank.
            cells: The number of each query's place.
            k: At most the number of rows near each query.
            ignore: Bank rows to leave out.

        Returns:
            The number of the query and the bank row of each pair, in the order of the queries; and
            the numbers of the queries of which all rows nearby have to be measured.
        """
        squared, rows = self._scan(np.ascontiguousarray(queries), cells, k + _MORE, ignore)
        # A float32 sum of the squares of d differences errs by at most (d + 2) 2^-24 of itself, and
        # by less than 1e-35 where it underflows.
        rounding = 1 + (self.dim + 3) * _UNIT
        limit = (squared[:, k - 1].astype(np.float64) * rounding + 1e-35) * rounding + 1e-35
        possible = (rows >= 0) & (squared <= limit[:, None])
        is_open = possible[:, -1]
        query, number = np.nonzero(possible & ~is_open[:, None])
        return query, rows[query, number], np.flatnonzero(is_open)

    def _scan(
        self, queries: np.ndarray, cells: np.ndarray, count: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances and rows of the nearest; -1 is none."""
        lists = np.ascontiguousarray(self.near[cells])
        distances = np.zeros(lists.shape, np.float32)
        squared = np.empty((len(queries), count), np.float32)
        rows = np.empty((len(queries), count), np.int64)
        found = faiss.swig_ptr(squared), faiss.swig_ptr(rows)
        asked = (faiss.swig_ptr(lists), faiss.swig_ptr(distances), *found, False)
        # faiss's own wrapper for numpy takes no parameters. Its stubs know neither.
        self.index.search_preassigned_c(  # type: ignore[attr-defined]
            len(queries), faiss.swig_ptr(queries), count, *asked, self._parameters(ignore)
        )
        return squared, rows

    def _parameters(self, ignore: np.ndarray | None) -> faiss.SearchParametersIVF:
        # The stubs know only the class that these are of, and not what is added when it is loaded.
        probes = self.near.shape[1]
        if ignore is None or len(ignore) == 0:
            return faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]
        left = faiss.IDSelectorNot(faiss.IDSelectorBatch(ignore))
        return faiss.SearchParametersIVF(nprobe=probes, sel=left)  # type: ignore[call-arg]
