"""Exact nearest neighbours on a CUDA device, by a product in bfloat16 and direct differences.

The product approximates all distances, with an error that is bounded. The k rows that it ranks
first are measured in float32, which limits how far the k nearest can be. Then all rows are measured
that may be within this limit, given the product's error. Those that float32 cannot tell apart end
in `exact.measured` on the CPU. So the results are to the bit those of the dense search, though the
tensor cores compute with 8 bits.

The same code runs on the device "cpu". It was run on that alone: there was no GPU to try it on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from patchlake.pipeline.index.exact import check_asked, measured

# Queries x bank rows at once: 2^27 at 7 bytes (bfloat16, float32 and a mask) is 940 MB.
_ESTIMATES = 2**27
# Pairs measured at once: 2^17 x 1024 float32, twice, is 1 GB.
_PAIRS = 2**17
# The most pairs of one product that are measured in float32: their indices take 24 bytes each, in
# all 200 MB.
_MOST_PAIRS = 2**23
_UNIT = 2.0**-24


@dataclass(frozen=True)
class AcceleratedSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    bank: Float32[np.ndarray, "bank dim"]
    _mean: Tensor
    # On the device: the rows, the centred rows in bfloat16, and the squared lengths of those.
    _rows: Tensor
    _rounded: Tensor
    _squared: Tensor

    @classmethod
    def over(
        cls, bank: Float32[np.ndarray, "bank dim"], device: torch.device
    ) -> "AcceleratedSearch":
        """Return a search over the bank, which is copied to the device: 6 bytes a value."""
        # Otherwise partial sums would be rounded to bfloat16, too, for which `_errors` does not
        # allow.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        # A copy, because `from_numpy` warns of a bank that is read-only.
        rows = torch.tensor(bank, device=device)
        mean = rows.mean(dim=0)
        centred = rows - mean
        return cls(bank, mean, rows, centred.bfloat16(), centred.square().sum(dim=1))

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return len(self.bank)

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        vectors: np.ndarray = self.bank[rows]
        return vectors

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `ExactSearch.nearest` returns, to the bit.

        O(queries * bank * dim) in bfloat16; about 1 GB of the device beside the bank.

        Args:
            queries: In the units of the bank.
            k: At most the number of bank rows that are not ignored.
            ignore: Bank rows to leave out.

        Raises:
            ValueError: if fewer than k rows remain, or the dimensions differ.
        """
        check_asked(self.bank, queries, k, ignore)
        size = max(1, _ESTIMATES // self.size)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            own = np.ascontiguousarray(queries[block])
            query, row = self._candidates(torch.from_numpy(own).to(self._rows.device), k, ignore)
            distances[block], rows[block] = measured(own, self.bank, query, row, k)
        return distances, rows

    def _candidates(
        self, queries: Tensor, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that float32 cannot tell from the k nearest, as (query, row), by query.

        If too many rows are possible, the queries are halved until their pairs fit in memory: in a
        bank whose rows are all alike, every pair is possible.
        """
        centred = queries - self._mean
        squared = centred.square().sum(dim=1)
        # |q - c|^2 - |q|^2, with the product in bfloat16.
        estimates = self._squared - 2 * (centred.bfloat16() @ self._rounded.T).float()
        if ignore is not None:
            estimates[:, torch.from_numpy(ignore).to(estimates.device)] = torch.inf
        first = estimates.topk(k, dim=1, largest=False).indices
        query = torch.arange(len(queries), device=first.device).repeat_interleave(k)
        reached = self._measure(queries, query, first.reshape(-1)).reshape(-1, k)
        rounding = 1 + (queries.shape[1] + 3) * _UNIT
        limit = reached.amax(dim=1) * rounding + 1e-35
        by_product, by_square = self._errors()
        estimates.addr_(squared.sqrt(), self._squared.sqrt(), alpha=-by_product)
        estimates -= by_square * self._squared
        possible = estimates <= (limit - squared + by_square * squared)[:, None]
        if possible.sum() > _MOST_PAIRS and len(queries) > 1:
            del estimates, possible
            return self._halved(queries, k, ignore)
        near = possible.reshape(-1).nonzero()[:, 0]
        query, row = near // self.size, near % self.size
        kept = self._measure(queries, query, row) <= (limit * rounding)[query]
        return query[kept].cpu().numpy(), row[kept].cpu().numpy()

    def _halved(
        self, queries: Tensor, k: int, ignore: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        half = len(queries) // 2
        query, row = self._candidates(queries[:half], k, ignore)
        others, other_row = self._candidates(queries[half:], k, ignore)
        return np.concatenate([query, others + half]), np.concatenate([row, other_row])

    def _errors(self) -> tuple[float, float]:
        """Return p and s that bound the error of an estimate by p |q| |c| + s (|q|^2 + |c|^2).

        Rounding to bfloat16, which has 8 bits, changes a value by 2^-8 of itself. In q.c it happens
        three times: to the query, to the bank and to the product. Sums of d terms in float32 lose
        d 2^-23, as tensor cores truncate. All of that counts twice, because the estimate has 2 q.c.
        Everything else is float32 and loses less than (d + 10) 2^-23 of (|q| + |c|)^2. The factor
        1.1 is for products of these errors.
        """
        dim = self._rows.shape[1]
        product = 1.1 * 2 * (3 * 2.0**-8 + dim * 2.0**-23)
        rest = 1.1 * (dim + 10) * 2.0**-23
        return product + 2 * rest, rest

    def _measure(self, queries: Tensor, query: Tensor, row: Tensor) -> Tensor:
        """Return the squared distances of pairs, by direct differences in float32."""
        squared = [
            (queries[query[i : i + _PAIRS]] - self._rows[row[i : i + _PAIRS]]).square().sum(dim=1)
            for i in range(0, len(query), _PAIRS)
        ]
        return torch.cat(squared) if squared else queries.new_empty(0)
