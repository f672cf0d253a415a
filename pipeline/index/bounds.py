"""Lower bounds on the distances between queries and bank rows, from one product of bytes.

How the distance |q - c| of two rows of dimension d is bounded from below:

1. Let x' = x - mean, let V be the p x d matrix of the leading principal directions, and let r(x) be
   the length of the rest of x', which lies outside those directions. The squared distance is that
   inside the directions plus that between the rests, and two vectors are at least as far apart as
   their lengths differ. So with the p + 1 coordinates z(x) = (V x', r(x))

       |z(q) - z(c)|^2 = |V q' - V c'|^2 + (r(q) - r(c))^2 <= |q - c|^2.

2. Rotating or shifting z changes no distance between two of them. A random rotation gives all
   coordinates about the same standard deviation, so that one step s suits them all.
3. z is clipped to the box [-127 s, 127 s]. Clipping takes each point to the nearest one of the box,
   and because a box is convex, no two points are farther apart afterwards.
4. The clipped z is rounded to bytes: clip(z(x)) = s b(x) + e(x). The length of e(x) is known for
   each row, so the triangle inequality gives the bound

       |q - c| >= s |b(q) - b(c)| - |e(q)| - |e(c)|.

5. |b(q) - b(c)|^2 = |b(q)|^2 + |b(c)|^2 - 2 b(q).b(c), so one product of bytes bounds a whole block
   of queries against a whole block of bank rows. Such products are exact integers, and where the
   processor has VNNI they run at 4 times the rate of float32 (`pipeline.index.products`).

z is computed in floating point; what that can change is bounded for each row, too.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int8, Int32

# Bank rows from which a projection is learned. Any rows would give correct bounds.
_SAMPLE_ROWS = 4096
# Rows projected at once: 4096 x 1024 float64 = 32 MiB.
_BLOCK_ROWS = 4096
# The largest byte, 127, stands for so many standard deviations. With fewer, many coordinates are
# clipped; with more, all are rounded more coarsely. With ResNet-18 and 128 components the bound
# leaves 0.12 to 0.15 % of the pairs for 2.5 to 5 deviations, and 0.28 % for 10. The squared lengths
# take 18 bytes a row for 2.5 deviations, and 7 for 5.
_DEVIATIONS = 5
# A vector can be about this long though float32 makes 0 of the square of each of its values, for up
# to 1e5 dimensions: sqrt(1e5 * 2^-150) = 8e-21.
_UNDERFLOW = 1e-20
# Above every estimate (`pipeline.index.sieve`): products reach 257 coordinates x 127^2 = 4.1 M.
NEVER = 2**31 - 1


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of some rows, as floats (z above) and as bytes (b above).

    `squared` is |b|^2, the sum of a row's squared bytes. `byte_error` bounds |e|, what rounding the
    clipped z to bytes changes; `float_error` bounds what computing z in floating point changes.
    Both are lengths in the units of the rows.

    A row of a bank has some bytes more behind its coordinates, by which the squared length takes
    part in the product: the extra bytes times (127, ..., 127, 1) give `squared` / 2, rounded down,
    minus the projection's `half_offset`.
    """

    floats: Float32[np.ndarray, "rows coordinates"]
    bytes: Int8[np.ndarray, "rows coordinates_or_more"]
    squared: Int32[np.ndarray, " rows"]
    byte_error: Float64[np.ndarray, " rows"]
    float_error: Float64[np.ndarray, " rows"]

    def as_bank(self) -> "BankCoordinates":
        """Return what a search needs of these rows, which must be those of a bank."""
        byte_error, float_error = float(self.byte_error.max()), float(self.float_error.max())
        return BankCoordinates(self.floats, self.bytes, byte_error, float_error)


@dataclass(frozen=True)
class BankCoordinates:
    """What a search needs of the rows of a bank: as `Coordinates`, but with the largest errors."""

    floats: Float32[np.ndarray, "rows coordinates"]
    bytes: Int8[np.ndarray, "rows coordinates_or_more"]
    byte_error: float
    float_error: float


@dataclass(frozen=True)
class Projection:
    """The map from rows to coordinates. Build it with `onto`.

    A row x has the coordinates (x - mean) @ directions + r(x) * rest_direction - centre: principal
    directions and random rotation are one matrix. A byte counts steps of length `step`.
    """

    mean: Float32[np.ndarray, " dim"]
    directions: Float64[np.ndarray, "dim coordinates"]
    rest_direction: Float64[np.ndarray, " coordinates"]
    centre: Float64[np.ndarray, " coordinates"]
    step: float
    # Halfway between the least and the largest half of `squared` in the sample. What is left of the
    # halves when it is subtracted takes fewer bytes.
    half_offset: int

    @classmethod
    def onto(
        cls,
        bank: Float32[np.ndarray, "bank dim"],
        principal: Float64[np.ndarray, "dim dim"],
        components: int,
    ) -> "Projection":
        """Return the projection that is learned from some rows of a bank.

        Args:
            bank: At least one row.
            principal: Its principal directions as columns, the leading one first.
            components: How many of them are used, p above.
        """
        rotation, _ = np.linalg.qr(
            np.random.default_rng(0).standard_normal((components + 1, components + 1))
        )
        directions = principal[:, :components] @ rotation[:-1]
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        plain = cls(mean, directions, rotation[-1], np.zeros(components + 1), 1.0, 0)
        sample = _evenly_spaced(bank, _SAMPLE_ROWS)
        coordinates, _, _ = plain._project(sample, np.float64)
        # All rests have positive lengths: without centring, their mean would take up some of the
        # range of the bytes.
        centre = coordinates.mean(axis=0)
        step = max(float((coordinates - centre).std()) * _DEVIATIONS / 127, _UNDERFLOW)
        rounding = cls(mean, directions, rotation[-1], centre, step, 0)
        squared = rounding._coordinates(sample, np.float64).squared
        return replace(rounding, half_offset=int(squared.min() + squared.max()) // 4)

    def of_bank(self, bank: Float32[np.ndarray, "bank dim"]) -> Coordinates:
        """Return the coordinates of a bank, computed in float64. O(bank * dim * components)."""
        blocks = [
            self._coordinates(bank[begin : begin + _BLOCK_ROWS], np.float64)
            for begin in range(0, len(bank), _BLOCK_ROWS)
        ]
        squared = np.concatenate([block.squared for block in blocks])
        values = np.concatenate([block.bytes for block in blocks])
        return Coordinates(
            np.concatenate([block.floats for block in blocks]),
            np.concatenate([values, _as_bytes(squared // 2, self.half_offset)], axis=1),
            squared,
            np.concatenate([block.byte_error for block in blocks]),
            np.concatenate([block.float_error for block in blocks]),
        )

    def of_queries(self, queries: Float32[np.ndarray, "queries dim"]) -> Coordinates:
        """Return the coordinates of a block of queries, computed in float32.

        A query's float error loosens only its own bounds, so float32 is good enough here. For the
        bank the largest error of all rows counts, and so float64 is used there: in float32 a single
        row with hardly any rest would loosen the bounds of all queries.
        """
        return self._coordinates(queries, np.float32)

    def _coordinates(self, rows: np.ndarray, dtype: type[np.floating]) -> Coordinates:
        """Return the coordinates of rows, computed in `dtype`, without a bank's extra bytes."""
        coordinates, lengths, rests = self._project(rows, dtype)
        coordinates -= self.centre.astype(dtype)
        floats = coordinates.astype(np.float32)
        steps = np.clip(floats * np.float32(1 / self.step), -127, 127)
        rounded = np.rint(steps)
        steps -= rounded
        # `steps` holds now what rounding changed, and `lost` is its length, in steps. A float32 sum
        # of up to 257 squares errs by 257 2^-24 = 2e-5 of itself, hence the factor. The scaling
        # errs by 2^-23 of each value, so by 2^-23 (|rounded| + |steps|) in all.
        lost = np.sqrt(np.einsum("nd,nd->n", steps, steps)).astype(np.float64) * 1.0001
        squared = np.einsum("nd,nd->n", rounded, rounded)
        lost += 2.0**-22 * (np.sqrt(squared) + lost)
        return Coordinates(
            floats,
            rounded.astype(np.int8),
            squared.astype(np.int32),
            lost * self.step,
            self._float_error(lengths, rests, float(np.finfo(dtype).eps) / 2),
        )

    def _project(
        self, rows: np.ndarray, dtype: type[np.floating]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return coordinates before `centre` is subtracted, the lengths |x'|, and the rests r(x).

        All are computed in `dtype`; the two lengths are returned as float64.
        """
        centred = np.subtract(rows, self.mean, dtype=dtype)
        # By torch, whose number of threads is set to one in each of our threads. numpy's BLAS has
        # one pool of threads for the process, for which blocks that run side by side would compete.
        directions = torch.from_numpy(self.directions.astype(dtype))
        coordinates: np.ndarray = (torch.from_numpy(centred) @ directions).numpy()
        squared = np.einsum("nd,nd->n", centred, centred)
        inside = np.einsum("nd,nd->n", coordinates, coordinates)
        rests = np.sqrt(np.maximum(squared - inside, 0))
        coordinates += rests[:, None] * self.rest_direction.astype(dtype)
        return coordinates, np.sqrt(squared).astype(np.float64), rests.astype(np.float64)

    def _float_error(self, lengths: np.ndarray, rests: np.ndarray, unit: float) -> np.ndarray:
        """Bound how far each row's computed coordinates are from those that mathematics gives.

        One coordinate of V x' is a dot product of d terms with a vector no longer than 1, so it
        errs by at most (d + 2) unit |x'|, errors of the directions and of the centring included.
        All p of them together err by E = sqrt(p) (d + 2) unit |x'|.

        r^2 = |x'|^2 - |V x'|^2 errs by at most 4 E |x'|. So r errs by at most that divided by r,
        and by at most its square root; the smaller of the two counts.

        Args:
            lengths: |x'| of each row.
            rests: r(x) of each row, as computed.
            unit: The relative error of one operation.
        """
        dim, count = self.directions.shape
        product = (dim + 2) * np.sqrt(count) * unit * lengths
        square = 4 * product * lengths
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = np.fmin(square / rests, np.sqrt(square))
        # 2^-22: adding the rest, centring, and rounding to float32.
        last = 2.0**-22 * (lengths + np.linalg.norm(self.centre)) + _UNDERFLOW
        error: np.ndarray = product + rest + last
        return error


def principal_directions(
    bank: Float32[np.ndarray, "bank dim"],
) -> tuple[Float64[np.ndarray, "dim dim"], Float64[np.ndarray, " dim"]]:
    """Return the principal directions of a bank as columns, and each one's share of the variance.

    Both are learned from at most 4096 rows, evenly spaced. The directions are unit vectors, the one
    of the largest variance first; the shares are 0..1.
    """
    rows = _evenly_spaced(bank, _SAMPLE_ROWS).astype(np.float64)
    rows -= rows.mean(axis=0)
    squared, directions = np.linalg.eigh(rows.T @ rows)
    shares = np.maximum(squared, 0) / max(squared.sum(), np.finfo(np.float64).tiny)
    return np.ascontiguousarray(directions[:, ::-1]), shares[::-1]


def _as_bytes(numbers: Int32[np.ndarray, " rows"], offset: int) -> Int8[np.ndarray, "rows bytes"]:
    """Return bytes that times (127, ..., 127, 1) give each of the numbers minus the offset.

    The numbers are 0 or more. There are always as many bytes as the number 0 takes. A caller that
    has no room for more may leave out the last of those before the remainder: a large number then
    counts for less than it is, and no number for more.
    """
    whole, remainder = np.divmod(numbers - offset, 127)
    largest = max(abs(-offset // 127), whole.max())
    steps = 127 * np.arange(-(-largest // 127))
    bytes_ = np.sign(whole)[:, None] * np.clip(np.abs(whole)[:, None] - steps, 0, 127)
    return np.column_stack([bytes_, remainder]).astype(np.int8)


def _evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the rows, evenly spaced, as a view."""
    return rows[:: -(-len(rows) // count)]
