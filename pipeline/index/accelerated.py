"""Exact nearest neighbours on a CUDA device: bfloat16 proposes, direct differences decide.

The product's error is bounded, so it is a bound and no more: the rows that it ranks first are
measured in float32, every row that its error leaves possible is measured after that, and what
float32 cannot tell apart ends in `exact.measured` on the CPU. So the results are those of the
dense search to the bit, whatever the tensor cores do in their 8 bits.

The same code runs on the device "cpu". It was run on that alone: there was no GPU to try it on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from patchlake.pipeline.index.exact import check_asked, measured

# Queries x bank rows at once: 2^27 at 7 bytes (bfloat16, float32 and a mask) is 940 MB.
_SCORES = 2**27
# Pairs measured at once: 2^17 x 1024 float32, twice, is 1 GB.
_PAIRS = 2**17
# Pairs that float32 measures, of one product: their numbers are 24 bytes each, 200 MB.
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
        # Sums of parts would be rounded to bfloat16, too, which no bound allows for.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        # `from_numpy` warns of a bank that is read only.
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
        size = max(1, _SCORES // self.size)
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
        """Return the pairs, by query, that float32 cannot tell from the k nearest.

        Queries to which too many rows are possible are halved, until their pairs fit: a bank of
        rows that are all alike leaves every pair.
        """
        centred = queries - self._mean
        squared = centred.square().sum(dim=1)
        # |q - c|^2 - |q|^2, with the product in bfloat16.
        scores = self._squared - 2 * (centred.bfloat16() @ self._rounded.T).float()
        if ignore is not None:
            scores[:, torch.from_numpy(ignore).to(scores.device)] = torch.inf
        first = scores.topk(k, dim=1, largest=False).indices
        query = torch.arange(len(queries), device=first.device).repeat_interleave(k)
        reached = self._measure(queries, query, first.reshape(-1)).reshape(-1, k)
        rounding = 1 + (queries.shape[1] + 3) * _UNIT
        limit = reached.amax(dim=1) * rounding + 1e-35
        by_product, by_square = self._errors()
        scores.addr_(squared.sqrt(), self._squared.sqrt(), alpha=-by_product)
        scores -= by_square * self._squared
        possible = scores <= (limit - squared + by_square * squared)[:, None]
        if possible.sum() > _MOST_PAIRS and len(queries) > 1:
            del scores, possible
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
        """Return p and s that bound the error of a score by p |q| |c| + s (|q|^2 + |c|^2).

        Rounding to bfloat16, of 8 bits, loses 2^-8 of a value: of q.c the queries, the bank and
        the product itself once each. Sums of d terms in float32, truncated as on tensor cores,
        lose d 2^-23. All of that counts twice, as of 2 q.c. What is left, in float32, is less than
        (d + 10) 2^-23 of (|q| + |c|)^2; a tenth is for second orders.
        """
        dim = self._rows.shape[1]
        product = 1.1 * 2 * (3 * 2.0**-8 + dim * 2.0**-23)
        rest = 1.1 * (dim + 10) * 2.0**-23
        return product + 2 * rest, rest

    def _measure(self, queries: Tensor, query: Tensor, row: Tensor) -> Tensor:
        """Return squared distances of pairs by direct differences in float32."""
        parts = [
            (queries[query[i : i + _PAIRS]] - self._rows[row[i : i + _PAIRS]]).square().sum(dim=1)
            for i in range(0, len(query), _PAIRS)
        ]
        return torch.cat(parts) if parts else queries.new_empty(0)
