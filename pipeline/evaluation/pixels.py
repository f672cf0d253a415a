"""Pixel AUROC and AUPRO of a data set of any size, from histograms of its scores.

AUPRO is the area under the per-region overlap curve: Bergmann et al., "The MVTec Anomaly
Detection Dataset", IJCV 2021; PRO itself is from their "Uninformed Students", CVPR 2020. For a
threshold t, PRO(t) is the mean, over all 8-connected regions of the defect masks, of the
fraction of the region that scores >= t; FPR(t) is the fraction of all good pixels, those of good
images included, that score >= t.

Deliberate difference: scores are compared by the leading bits of their float32 only, so nearly
equal scores count as tied. The error bounds say how much that can matter on the data seen.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from scipy import ndimage

from patchlake.pipeline.evaluation.cells import Histograms, bins_of, require_comparable

# Of an octave, these take 3 * 2**14 * 8 B = 393 kB.
_GOOD, _DEFECTIVE, _OVERLAP = range(3)
# A region's pixels weigh 1/area each, as integers in this unit, since sums of integers do not
# depend on order. Rounding changes a region's weight by at most area / 2 units: 5e-7 of it for
# 2**16 pixels. The sum stays below 2**63 up to 2**27 = 134 million regions.
_REGION_WEIGHT = 2**36


@dataclass(frozen=True)
class _Curve:
    """A curve of hits over false alarms, each 0..1, as the threshold falls from cell to cell."""

    false_alarms: Float64[np.ndarray, " points"]
    hits: Float64[np.ndarray, " points"]

    def area(self, limit: float) -> float:
        """Return the mean height up to `limit` false alarms, by trapezoids."""
        # "<=" keeps the whole of a vertical step at the limit itself, where it has no width.
        inside = self.false_alarms <= limit
        x = np.append(self.false_alarms[inside], limit)
        y = np.append(self.hits[inside], np.interp(limit, self.false_alarms, self.hits))
        return float(np.trapezoid(y, x)) / limit

    def area_error_bound(self, limit: float) -> float:
        """Return how far `area` can be from that of the curve through every distinct score.

        Inside a cell the true curve rises somehow from corner to corner of a box, whose diagonal
        is our trapezoid: half the box at most. Of a box cut by the limit, all of it.
        """
        x = self.false_alarms
        boxes = np.diff(np.minimum(x, limit)) * np.diff(self.hits)
        is_cut = (x[:-1] < limit) & (limit < x[1:])
        return float(boxes.sum() + boxes[is_cut].sum()) / 2 / limit


@dataclass(eq=False)
class PixelCurves:
    """Histograms of pixel scores, filled image by image, and the metrics read from them.

    Contents are integer counts, so the metrics are equal to the last bit for any order of `add`
    and `merge`. Memory does not grow with the number of images: see `nbytes`.

    Attributes:
        histograms: Counts of good pixels and of defective pixels, and weights of defective pixels
            in their regions.
    """

    histograms: Histograms = field(default_factory=lambda: Histograms(3), repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the histograms in bytes: 393 216 for each octave seen, 201 MB at the worst."""
        return self.histograms.nbytes

    def add(
        self,
        anomaly_map: Float32[np.ndarray, "height width"],
        defect_mask: Bool[np.ndarray, "mask_height mask_width"],
    ) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: Any finite scores, larger is more anomalous.
            defect_mask: True on defects, of the shape of the map; all False for a good image.

        Raises:
            TypeError: if the mask is not boolean.
            ValueError: if the shapes differ or a score is not finite.
        """
        require_comparable(anomaly_map, defect_mask)
        bins = bins_of(anomaly_map)
        good, defective = bins[~defect_mask], bins[defect_mask]
        self.histograms.count(_GOOD, good, np.ones(good.size, np.int64))
        self.histograms.count(_DEFECTIVE, defective, np.ones(defective.size, np.int64))
        self.histograms.count(_OVERLAP, defective, _overlap_weights(defect_mask))

    def merge(self, other: "PixelCurves") -> None:
        """Add the pixels counted by `other`, which stays as it is and shares no memory."""
        self.histograms.merge(other.histograms)

    def auroc(self) -> float | None:
        """Return the area under the pixel ROC curve, 0..1, ties within a cell counted half.

        None without defective or without good pixels.
        """
        curve = self._curve(_DEFECTIVE)
        return None if curve is None else curve.area(1.0)

    def auroc_error_bound(self) -> float | None:
        """Return how far `auroc` can be from the exact area; None where it is None.

        Equal scores look like nearly equal ones, so true ties widen the bound, not the error.
        """
        curve = self._curve(_DEFECTIVE)
        return None if curve is None else curve.area_error_bound(1.0)

    def aupro(self, fpr_limit: float = 0.3) -> float | None:
        """Return the area under PRO over FPR from 0 to the limit, divided by the limit: 0..1.

        The curve is linear between thresholds, also where the limit cuts it. None without
        regions or without good pixels.

        Args:
            fpr_limit: Largest false positive rate of interest, above 0 and up to 1.

        Raises:
            ValueError: if `fpr_limit` is out of its range.
        """
        _require_rate(fpr_limit)
        curve = self._curve(_OVERLAP)
        return None if curve is None else curve.area(fpr_limit)

    def aupro_error_bound(self, fpr_limit: float = 0.3) -> float | None:
        """Return how far `aupro` can be from the exact area; None where it is None.

        Rounded region weights come on top: 5e-7 with regions of up to 2**16 pixels.

        Raises:
            ValueError: if `fpr_limit` is out of its range.
        """
        _require_rate(fpr_limit)
        curve = self._curve(_OVERLAP)
        return None if curve is None else curve.area_error_bound(fpr_limit)

    def _curve(self, hits: int) -> _Curve | None:
        """Return the curve of row `hits` over good pixels; None if either is empty."""
        counts = self.histograms.falling()
        good, hit = counts[_GOOD], counts[hits]
        if good[-1] == 0 or hit[-1] == 0:
            return None
        return _Curve(false_alarms=good / good[-1], hits=hit / hit[-1])


def _overlap_weights(
    defect_mask: Bool[np.ndarray, "height width"],
) -> Int64[np.ndarray, " defective"]:
    """Return 1 / area of its region for each defective pixel, in units of `_REGION_WEIGHT`."""
    labels, _ = ndimage.label(defect_mask, structure=np.ones((3, 3)))  # 8-connected
    region: Int32[np.ndarray, " defective"] = labels[defect_mask] - 1
    weights = np.rint(_REGION_WEIGHT / np.bincount(region)).astype(np.int64)
    of_pixels: Int64[np.ndarray, " defective"] = weights[region]
    return of_pixels


def _require_rate(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        msg = f"fpr_limit is {fpr_limit}; a false positive rate lies above 0 and up to 1"
        raise ValueError(msg)
