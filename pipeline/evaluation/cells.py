"""Histograms of float32 scores whose memory does not grow with the number of scores.

Scores are compared by the leading bits of their float32 only, so nearly equal scores count as tied.
Contents are integers, so that sums do not depend on the order in which images come.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

# A float32 has 1 sign, 8 exponent and 23 mantissa bits. Without the low 9, an octave (the scores
# that share sign and exponent) has 2**14 cells, each at most 2**-14 = 6e-5 of its scores wide.
_DROPPED_BITS = 9
_CELLS = 2**14


@dataclass(eq=False)
class Histograms:
    """A fixed number of histograms over the same cells.

    Distances from 0.1 to 10 span 8 octaves, which are 1 MB a histogram; all 2 * 255 octaves of
    finite float32 would take 67 MB.

    Attributes:
        rows: Number of the histograms.
        octaves: By leading bits of the score, rising: the counts or weights in each cell.
    """

    rows: int
    octaves: dict[int, Int64[np.ndarray, "rows cells"]] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes: 131 072 a histogram for each octave seen."""
        return sum(table.nbytes for table in self.octaves.values())

    def count(
        self, row: int, bins: UInt32[np.ndarray, " pixels"], weights: Int64[np.ndarray, " pixels"]
    ) -> None:
        """Add weights to the cells of one histogram, which `bins_of` gave."""
        octaves, cells = np.divmod(bins, np.uint32(_CELLS))
        for octave in np.flatnonzero(np.bincount(octaves)):
            here = octaves == octave
            np.add.at(self._table(int(octave))[row], cells[here], weights[here])

    def merge(self, other: "Histograms") -> None:
        """Add what `other` holds, which stays as it is and shares no memory."""
        for octave, table in other.octaves.items():
            self._table(octave)[...] += table

    def falling(self) -> Int64[np.ndarray, "rows points"]:
        """Return what lies at or above each threshold, as it falls from cell to cell.

        The first column is zero: the threshold is above every score.
        """
        tables = [self.octaves[octave][:, ::-1] for octave in sorted(self.octaves, reverse=True)]
        return np.concatenate([np.zeros((self.rows, 1), np.int64), *tables], axis=1).cumsum(axis=1)

    def _table(self, octave: int) -> Int64[np.ndarray, "rows cells"]:
        if octave not in self.octaves:
            self.octaves[octave] = np.zeros((self.rows, _CELLS), np.int64)
        return self.octaves[octave]


def bins_of(scores: Float32[np.ndarray, "height width"]) -> UInt32[np.ndarray, "height width"]:
    """Return bin numbers 0..2**23 - 1 in the order of the scores, which are finite."""
    # IEEE 754 floats sort like sign and magnitude: flip negative ones whole, set the sign of the
    # others. Adding 0.0 turns -0.0 into 0.0.
    bits = np.add(scores, 0.0, dtype=np.float32).view(np.uint32)
    sign = np.uint32(2**31)
    ordered: UInt32[np.ndarray, "height width"] = np.where(bits & sign, ~bits, bits | sign)
    return ordered >> np.uint32(_DROPPED_BITS)


def require_comparable(
    anomaly_map: Float32[np.ndarray, "height width"],
    defect_mask: Bool[np.ndarray, "mask_height mask_width"],
) -> None:
    """Refuse a map and a mask of it that cannot be compared pixel by pixel.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if the shapes differ or a score is not finite.
    """
    if defect_mask.dtype != np.bool_:
        msg = f"the defect mask is {defect_mask.dtype}, not bool; threshold it first"
        raise TypeError(msg)
    if anomaly_map.shape != defect_mask.shape:
        msg = (
            f"the anomaly map is {anomaly_map.shape}, its defect mask {defect_mask.shape}; "
            "resample one to the other's shape"
        )
        raise ValueError(msg)
    if (bad := int(np.count_nonzero(~np.isfinite(anomaly_map)))) > 0:
        msg = f"{bad} of {anomaly_map.size} scores of the anomaly map are NaN or infinite"
        raise ValueError(msg)
