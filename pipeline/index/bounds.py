"""Lower bounds on distances to a bank, from a few coordinates a row and a product of bytes.

Let x' = x - mean, V the leading principal directions, and r(x) the length of what x' leaves outside
them. Then |V q' - V c'|^2 + (r(q) - r(c))^2 <= |q - c|^2: inside the directions nothing is lost,
and two rests differ by at least the difference of their lengths. The coordinates (V x', r(x)) may
be rotated freely; a random rotation gives each about the same spread, so that one byte each will
do. They may be clipped, too: of a box, which is convex, the nearest points to two others are no
farther apart than those. With step s, clip(z) = s i + e, and s i are at most |q - c| + |e(q)| +
|e(c)| apart; both errors are known. Products of bytes are exact integers and run at 4 times the
rate of float32 where the processor has VNNI (400 against 95 GFLOP/s a core of a Zen 4).
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8, Int32

# Rows that a projection is learned from: any would bound correctly.
_SAMPLE = 4096
# Rows projected at once: 4096 x 1024 float64 = 32 MiB.
_PROJECTED = 4096
# Standard deviations that the bytes reach: few clip many rows, many round all. Of ResNet-18's pairs
# and with 128 components 0.12 to 0.15 % are left from 2.5 to 5, and 0.28 % at 10. The squared
# lengths take 18 bytes at 2.5, 7 at 5.
_REACH = 5
# What float32 takes for nothing: squares of it add up to 0, for up to 1e5 dimensions.
_LEAST = 1e-20
# Above every score: 257 coordinates x 127^2 = 4.1 M.
NEVER = 2**31 - 1


@dataclass(frozen=True)
class Coordinates:
    """Rows in the coordinates of the bound.

    `error` bounds the distance from `exact`, clipped, to `bytes` times the step, `drift` that from
    `exact` to what the mathematics says, and `squared` is the sum of the squared bytes. In a bank
    more bytes follow, which times (127, ..., 127, 1) give half of `squared`, rounded down, less the
    projection's `usual`.
    """

    exact: Float32[np.ndarray, "rows coordinates"]
    bytes: Int8[np.ndarray, "rows coordinates_or_more"]
    squared: Int32[np.ndarray, " rows"]
    error: Float64[np.ndarray, " rows"]
    drift: Float64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Projection:
    """The map from rows to coordinates. Build it with `onto`."""

    mean: Float32[np.ndarray, " dim"]
    directions: Float64[np.ndarray, "dim coordinates"]
    rest: Float64[np.ndarray, " coordinates"]
    centre: Float64[np.ndarray, " coordinates"]
    step: float
    # Half the sum of the squared bytes of a row in the middle: the others' differ by fewer bytes.
    usual: int

    @classmethod
    def onto(
        cls,
        bank: Float32[np.ndarray, "bank dim"],
        principal: Float64[np.ndarray, "dim dim"],
        components: int,
    ) -> "Projection":
        """Return the projection onto the first of the principal directions, and the rest."""
        rotation, _ = np.linalg.qr(
            np.random.default_rng(0).standard_normal((components + 1, components + 1))
        )
        directions = principal[:, :components] @ rotation[:-1]
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        plain = cls(mean, directions, rotation[-1], np.zeros(components + 1), 1.0, 0)
        sample = _spread(bank, _SAMPLE)
        coordinates, _, _ = plain._raw(sample, np.float64)
        # The lengths of the rests have a mean, which would use up a part of the bytes' range.
        centre = coordinates.mean(axis=0)
        step = max(float((coordinates - centre).std()) * _REACH / 127, _LEAST)
        rounding = cls(mean, directions, rotation[-1], centre, step, 0)
        squared = rounding._of(sample, np.float64).squared
        return replace(rounding, usual=int(squared.min() + squared.max()) // 4)

    def of_bank(self, bank: Float32[np.ndarray, "bank dim"]) -> Coordinates:
        """Return the coordinates of a bank, computed in float64. O(bank * dim * components)."""
        blocks = [
            self._of(bank[begin : begin + _PROJECTED], np.float64)
            for begin in range(0, len(bank), _PROJECTED)
        ]
        squared = np.concatenate([block.squared for block in blocks])
        values = np.concatenate([block.bytes for block in blocks])
        return Coordinates(
            np.concatenate([block.exact for block in blocks]),
            np.concatenate([values, _as_bytes(squared // 2, self.usual)], axis=1),
            squared,
            np.concatenate([block.error for block in blocks]),
            np.concatenate([block.drift for block in blocks]),
        )

    def of_queries(self, queries: Float32[np.ndarray, "queries dim"]) -> Coordinates:
        """Return the coordinates of a block of queries, computed in float32.

        Their drift is that of one query each, so it may be large where the bank's may not: a bank
        row with hardly any rest would loosen the bounds of all queries.
        """
        return self._of(queries, np.float32)

    def _of(self, rows: np.ndarray, dtype: type[np.floating]) -> Coordinates:
        coordinates, lengths, rests = self._raw(rows, dtype)
        coordinates -= self.centre.astype(dtype)
        exact = coordinates.astype(np.float32)
        steps = np.clip(exact * np.float32(1 / self.step), -127, 127)
        rounded = np.rint(steps)
        steps -= rounded
        # The scaling loses 2^-23 of each step, |rounded| + |steps| in all; the sum of up to 257
        # squares 257 2^-24 = 2e-5 of itself.
        lost = np.sqrt(np.einsum("nd,nd->n", steps, steps)).astype(np.float64) * 1.0001
        squared = np.einsum("nd,nd->n", rounded, rounded)
        lost += 2.0**-22 * (np.sqrt(squared) + lost)
        return Coordinates(
            exact,
            rounded.astype(np.int8),
            squared.astype(np.int32),
            lost * self.step,
            self._drift(lengths, rests, float(np.finfo(dtype).eps) / 2),
        )

    def _raw(
        self, rows: np.ndarray, dtype: type[np.floating]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return coordinates before centring, lengths of the centred rows, and of their rests."""
        centred = np.subtract(rows, self.mean, dtype=dtype)
        # torch's product, because its threads are limited in one thread of ours; numpy's BLAS has
        # one pool for all, which blocks would fight over.
        directions = torch.from_numpy(self.directions.astype(dtype))
        coordinates: np.ndarray = (torch.from_numpy(centred) @ directions).numpy()
        squared = np.einsum("nd,nd->n", centred, centred)
        inside = np.einsum("nd,nd->n", coordinates, coordinates)
        rests = np.sqrt(np.maximum(squared - inside, 0))
        coordinates += rests[:, None] * self.rest.astype(dtype)
        return coordinates, np.sqrt(squared).astype(np.float64), rests.astype(np.float64)

    def _drift(self, lengths: np.ndarray, rests: np.ndarray, unit: float) -> np.ndarray:
        """Bound the rounding of the coordinates, with `unit` the relative error of one operation.

        A coordinate is a dot product of length d with a vector of length 1 at most, so it errs by
        (d + 2) unit |x'|, directions and centring included, and p of them by sqrt(p) as much: e.
        r^2 = |x'|^2 - |V x'|^2 then errs by 4 e |x'|, and r by that over r, or by its root.
        """
        dim, count = self.directions.shape
        product = (dim + 2) * np.sqrt(count) * unit * lengths
        square = 4 * product * lengths
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = np.fmin(square / rests, np.sqrt(square))
        # 2^-22: adding the rest, centring, and rounding to float32.
        last = 2.0**-22 * (lengths + np.linalg.norm(self.centre)) + _LEAST
        drift: np.ndarray = product + rest + last
        return drift


def principal_directions(
    bank: Float32[np.ndarray, "bank dim"],
) -> tuple[Float64[np.ndarray, "dim dim"], Float64[np.ndarray, " dim"]]:
    """Return the principal directions of some of the bank as columns, the leading first.

    And how much of all variance each has, 0..1.
    """
    rows = _spread(bank, _SAMPLE).astype(np.float64)
    rows -= rows.mean(axis=0)
    squared, directions = np.linalg.eigh(rows.T @ rows)
    shares = np.maximum(squared, 0) / max(squared.sum(), np.finfo(np.float64).tiny)
    return np.ascontiguousarray(directions[:, ::-1]), shares[::-1]


def _as_bytes(numbers: Int32[np.ndarray, " rows"], usual: int) -> Int8[np.ndarray, "rows bytes"]:
    """Return bytes that times (127, ..., 127, 1) give the numbers, which are >= 0, less `usual`.

    Where somebody has room for those of the number 0 only, larger numbers give less than they are.
    """
    whole, remainder = np.divmod(numbers - usual, 127)
    largest = max(abs(-usual // 127), whole.max())
    steps = 127 * np.arange(-(-largest // 127))
    bytes_ = np.sign(whole)[:, None] * np.clip(np.abs(whole)[:, None] - steps, 0, 127)
    return np.column_stack([bytes_, remainder]).astype(np.int8)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[:: -(-len(rows) // count)]


def multiply(
    queries: Int8[np.ndarray, "queries coordinates"],
    tile: Int8[np.ndarray, "tile coordinates"],
    out: Int32[np.ndarray, "queries tile"],
) -> None:
    """Write the exact products of the rows to `out`."""
    torch._int_mm(  # noqa: SLF001 - torch has no public product of bytes on a CPU
        torch.from_numpy(queries), torch.from_numpy(tile).t(), out=torch.from_numpy(out)
    )


@cache
def products_are_exact() -> bool:
    """Return whether `multiply` works here: it is no public function of torch, so it is tried.

    Processors without VNNI add pairs of products in 16 bits; the largest bytes show it.
    """
    generator = np.random.default_rng(0)
    queries = generator.integers(-127, 128, (64, 129)).astype(np.int8)
    tile = generator.integers(-127, 128, (512, 129)).astype(np.int8)
    queries[:2], tile[:2] = 127, -127
    queries[2:4], tile[2:4] = -127, 127
    out = np.empty((64, 512), np.int32)
    try:
        multiply(queries, tile, out)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((out == queries.astype(np.int32) @ tile.T.astype(np.int32)).all())
