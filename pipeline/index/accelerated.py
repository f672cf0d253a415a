"""Exact nearest neighbours on a CUDA device, by a product in bfloat16 and direct differences.

One product gives a lower bound of every squared distance, its own error included. The k rows that
it ranks first are measured in float32, which limits how far the k nearest can be. Then all rows are
measured whose bound is within this limit, and those that float32 cannot tell apart again in
float64. Where even that leaves a doubt of a bit (two rows as near as each other, a distance on the
border of two float32), `exact.measured` decides on the CPU: one query in many thousands. So the
results are to the bit those of the dense search, though the tensor cores compute with 8 bits.

The queries may be on the device already, where the network has made them: only distances and rows
are copied from there. The same code runs on the device "cpu".
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from patchlake.pipeline.index.exact import check_asked, measured

# Queries x bank rows at once: 2^27 at 5 bytes (a bound and a mask) is 670 MB.
_BOUNDS = 2**27
# Pairs measured at once: 2^16 x 1024 float64, twice, is 1 GB.
_PAIRS = 2**16
# The most pairs of one product that are measured in float32: their indices take 24 bytes each, in
# all 200 MB.
_MOST_PAIRS = 2**23
_UNIT = 2.0**-24
# Products of bfloat16 are fast where the dimensions are a multiple of it.
_ALIGNED = 8


@dataclass(frozen=True)
class AcceleratedSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    bank: Float32[np.ndarray, "bank dim"]
    _mean: Tensor
    # On the device: the rows, and what the product takes of them.
    _rows: Tensor
    _factors: Tensor

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
        factors = _bank_factors(rows - mean)
        if device.type == "cuda":
            # Other threads search on streams of their own, which do not wait for this one.
            torch.cuda.synchronize(device)
        return cls(bank, mean, rows, factors)

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
        on_device = torch.from_numpy(np.ascontiguousarray(queries)).to(self._rows.device)
        return self.nearest_on_device(on_device, k, ignore=ignore)

    def nearest_on_device(
        self,
        queries: Float32[Tensor, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `nearest` returns, of queries on the device."""
        check_asked(self.bank, queries.shape[1], k, ignore)
        size = max(1, _BOUNDS // self.size)
        distances = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for begin in range(0, len(queries), size):
            block = slice(begin, begin + size)
            query, row = self._candidates(queries[block], k, ignore)
            distances[block], rows[block] = self._decided(queries[block], query, row, k)
        return distances, rows

    def _candidates(
        self, queries: Tensor, k: int, ignore: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """Return the pairs that float32 cannot tell from the k nearest, as (query, row), by query.

        If too many rows are possible, the queries are halved until their pairs fit in memory: in a
        bank whose rows are all alike, every pair is possible.
        """
        centred = queries - self._mean
        bounds = _product(_query_factors(centred), self._factors)
        if ignore is not None:
            bounds[:, torch.from_numpy(ignore).to(bounds.device)] = torch.inf
        # Of one, the minimum takes a tenth of the time.
        if k == 1:
            first = bounds.argmin(dim=1, keepdim=True)
        else:
            first = bounds.topk(k, dim=1, largest=False).indices
        query = torch.arange(len(queries), device=first.device).repeat_interleave(k)
        reached = self._measure(queries, query, first.reshape(-1), torch.float32).reshape(-1, k)
        rounding = 1 + (queries.shape[1] + 3) * _UNIT
        limit = reached.amax(dim=1) * rounding + 1e-35
        squared = centred.square().sum(dim=1)
        _, rest = _errors(queries.shape[1])
        possible = bounds <= (limit - squared * (1 - rest))[:, None]
        if possible.sum() > _MOST_PAIRS and len(queries) > 1:
            del bounds, possible
            return self._halved(queries, k, ignore)
        near = possible.reshape(-1).nonzero()[:, 0]
        query, row = near // self.size, near % self.size
        within = self._measure(queries, query, row, torch.float32) <= (limit * rounding)[query]
        kept = within.nonzero()[:, 0]
        return query[kept], row[kept]

    def _halved(self, queries: Tensor, k: int, ignore: np.ndarray | None) -> tuple[Tensor, Tensor]:
        half = len(queries) // 2
        query, row = self._candidates(queries[:half], k, ignore)
        others, other_row = self._candidates(queries[half:], k, ignore)
        return torch.cat([query, others + half]), torch.cat([row, other_row])

    def _decided(
        self, queries: Tensor, query: Tensor, row: Tensor, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and rows of the k nearest among candidate pairs, as `measured` does.

        A sum of d squares in float64 errs by at most (d + 2) 2^-53 of itself, here and in
        `measured`: the two are within (d + 2) 2^-52 of each other. Where that changes neither the
        order of the k rows nor the float32 of a distance, `measured` would say the same.
        """
        first = torch.searchsorted(query, torch.arange(len(queries) + 1, device=query.device))
        pairs = (first[:-1, None] + torch.arange(k, device=query.device)).clamp(max=len(query) - 1)
        if not len(query):
            # Values that are not finite: there is nothing to decide between.
            return self._measured(queries, query, row, k)
        squared, order = self._measure(queries, query, row, torch.float64)[pairs].sort(dim=1)
        error = squared * ((queries.shape[1] + 2) * 2.0**-52)
        below, above = squared - error, squared + error
        distances = below.sqrt().float()
        is_sure = (first.diff() == k) & (distances == above.sqrt().float()).all(dim=1)
        is_sure &= (above[:, :-1] < below[:, 1:]).all(dim=1)
        found = distances.cpu().numpy(), row[pairs].gather(1, order).cpu().numpy()
        doubtful = (~is_sure).nonzero()[:, 0]
        if len(doubtful):
            own = ~is_sure[query]
            number = torch.searchsorted(doubtful, query[own])
            decided = self._measured(queries[doubtful], number, row[own], k)
            for column, exact in zip(found, decided, strict=True):
                column[doubtful.cpu().numpy()] = exact
        return found

    def _measured(
        self, queries: Tensor, query: Tensor, row: Tensor, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        pairs = query.cpu().numpy(), row.cpu().numpy()
        return measured(queries.cpu().numpy(), self.bank, *pairs, k)

    def _measure(self, queries: Tensor, query: Tensor, row: Tensor, kind: torch.dtype) -> Tensor:
        """Return the squared distances of pairs, by direct differences of this type."""
        squared = [
            (queries[query[i : i + _PAIRS]].to(kind) - self._rows[row[i : i + _PAIRS]])
            .square()
            .sum(dim=1)
            for i in range(0, len(query), _PAIRS)
        ]
        return torch.cat(squared) if squared else queries.new_empty(0, dtype=kind)


def _errors(dim: int) -> tuple[float, float]:
    """Return p and s that bound the error of a product's 2 q.c by p |q| |c| + s (|q|^2 + |c|^2).

    Rounding to bfloat16, which has 8 bits, changes a value by 2^-8 of itself, and in q.c it happens
    to the query and to the bank. Sums of d terms in float32 lose d 2^-23, as tensor cores truncate.
    All of that counts twice, because it is of 2 q.c. Everything else is float32 and loses less than
    (d + 16) 2^-23 of (|q| + |c|)^2. The factor 1.1 is for products of these errors.
    """
    product = 1.1 * 2 * (2 * 2.0**-8 + dim * 2.0**-23)
    rest = 1.1 * (dim + 16) * 2.0**-23
    return product + 2 * rest, rest


def _bank_factors(centred: Float32[Tensor, "bank dim"]) -> Tensor:
    """Return the bank's side of the product, bfloat16 (dim + 4 and zeros, bank).

    With `_query_factors`, whose rows are (-2 q, 1, 1, 1, |q|), the product is

        |c|^2 (1 - s) - 2 q.c - p |q| |c|  <=  |q - c|^2 - |q|^2 (1 - s)

    of rows without their mean. |c|^2 (1 - s) is the sum of three bfloat16, which have float32's 24
    bits together; lengths are rounded up.
    """
    by_product, by_square = _errors(centred.shape[1])
    squared = centred.square().sum(dim=1)
    left = squared * (1 - by_square)
    parts = []
    for _ in range(3):
        parts.append(left.bfloat16())
        left = left - parts[-1].float()
    factors = torch.stack([*parts, -_rounded_up(by_product * squared.sqrt())], dim=1)
    return _aligned(torch.cat([centred.bfloat16(), factors], dim=1)).T


def _query_factors(centred: Float32[Tensor, "queries dim"]) -> Tensor:
    ones = centred.new_ones((len(centred), 3), dtype=torch.bfloat16)
    lengths = _rounded_up(torch.linalg.vector_norm(centred, dim=1))[:, None]
    # Twice a bfloat16 is one.
    return _aligned(torch.cat([-2 * centred.bfloat16(), ones, lengths], dim=1))


def _rounded_up(lengths: Tensor) -> Tensor:
    """Return bfloat16 no smaller than the lengths: they are raised by more than rounding takes."""
    return (lengths * (1 + 2.0**-7)).bfloat16()


def _aligned(factors: Tensor) -> Tensor:
    return torch.nn.functional.pad(factors, (0, -factors.shape[1] % _ALIGNED))


def _product(queries: Tensor, bank: Tensor) -> Float32[Tensor, "queries bank"]:
    """Return the product of bfloat16 with sums, and so the result, in float32."""
    if queries.is_cuda:
        return torch.mm(queries, bank, out_dtype=torch.float32)
    return queries.float() @ bank.float()
