"""AUPIMO of a data set of any size, from two histograms of its scores.

Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low
Tolerance", BMVC 2024. For a threshold t, FPR(t) is the mean, over the good images alone, of the
share of the image's pixels that score >= t; the per-image overlap (PIMO) of an anomalous image is
the share of its defect mask that scores >= t. AUPIMO of an image is the mean height of its curve
over log FPR, from 1e-5 to 1e-4; that of a data set is the mean over its anomalous images.

That mean is a sum over images of areas under curves over one and the same FPR, and so the area
under the mean curve. The mean curve needs no image by itself: it is a histogram in which each
defective pixel weighs 1 / (area of its image's mask). So nothing is kept an image.

Deliberate differences: the areas of single images, whose spread the paper shows too, are not there.
Thresholds are the cells of `pipeline.evaluation.cells`, where the paper takes 300,000 equally
spaced ones; the error bound says how much that can matter on the data seen. The ends of the range
are interpolated, where the paper takes the nearest threshold. Where the best good pixels tie, so
that no threshold has an FPR between 0 and some rate in the range, the curve up to there has the
height that it has without any false positive.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from patchlake.pipeline.evaluation.cells import Histograms, bins_of, require_comparable

_GOOD, _OVERLAP = range(2)
# An image's defective pixels weigh 1/area each, as integers in this unit; see `pixels`: rounding
# changes an image's weight by at most 5e-7 of it for 2**16 pixels, and 2**27 images fit.
_IMAGE_WEIGHT = 2**36


@dataclass(eq=False)
class ImageOverlap:
    """Histograms of the pixels of good images and of defects, and AUPIMO read from them.

    Contents are integer counts, so AUPIMO is equal to the last bit for any order of `add`. Memory
    is 262 144 bytes for each octave of scores seen, and nothing an image.

    Attributes:
        histograms: Counts of the pixels of good images, and weights of defective pixels in their
            images.
        good_pixels: Pixels of each good image; None before the first.
    """

    histograms: Histograms = field(default_factory=lambda: Histograms(2), repr=False)
    good_pixels: int | None = None

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
            ValueError: if the shapes differ, a score is not finite, or a good image has another
                number of pixels than the good ones before it: their mean rate would not be that
                of all their pixels.
        """
        require_comparable(anomaly_map, defect_mask)
        bins = bins_of(anomaly_map)
        if area := int(np.count_nonzero(defect_mask)):
            weight = round(_IMAGE_WEIGHT / area)
            self.histograms.count(_OVERLAP, bins[defect_mask], np.full(area, weight, np.int64))
            return
        if self.good_pixels not in (None, bins.size):
            msg = f"a good image has {bins.size} pixels, those before it {self.good_pixels}"
            raise ValueError(msg)
        self.good_pixels = bins.size
        self.histograms.count(_GOOD, bins.ravel(), np.ones(bins.size, np.int64))

    def aupimo(self, lowest: float = 1e-5, highest: float = 1e-4) -> float | None:
        """Return the mean per-image overlap over log FPR between two rates: 0..1.

        None without an anomalous image, and where the good images have fewer than 1 / `lowest`
        pixels together: then one pixel is more than the lowest rate, which nothing can show. With
        the default and images of 256 x 256 pixels that takes two good images.

        Raises:
            ValueError: if the rates are not rising, above 0 and up to 1.
        """
        curve = self._curve(lowest, highest)
        return None if curve is None else curve.height()

    def aupimo_error_bound(self, lowest: float = 1e-5, highest: float = 1e-4) -> float | None:
        """Return how far `aupimo` can be from that of every distinct score; None where it is None.

        Rounded weights come on top: 5e-7 with masks of up to 2**16 pixels. Raises as `aupimo`.
        """
        curve = self._curve(lowest, highest)
        return None if curve is None else curve.height_error_bound()

    def _curve(self, lowest: float, highest: float) -> "_LogCurve | None":
        if not 0 < lowest < highest <= 1:
            msg = f"the rates are {lowest} and {highest}; they must rise, above 0 and up to 1"
            raise ValueError(msg)
        good, hit = self.histograms.falling()
        if hit[-1] == 0 or good[-1] * lowest < 1:
            return None
        return _LogCurve.of(good, hit, (lowest, highest))


@dataclass(frozen=True)
class _LogCurve:
    """The mean curve of hits, 0..1, over the logarithm of the rate of false alarms.

    Attributes:
        x: Logarithm of the rate, rising from 0 at the lowest rate to 1 at the highest, and beyond.
        hits: Mean overlap at each.
        free_hits: Overlap at the lowest threshold without any false alarm.
    """

    x: Float64[np.ndarray, " points"]
    hits: Float64[np.ndarray, " points"]
    free_hits: float

    @classmethod
    def of(
        cls,
        good: Int64[np.ndarray, " thresholds"],
        hit: Int64[np.ndarray, " thresholds"],
        limits: tuple[float, float],
    ) -> "_LogCurve":
        """Return the curve of counts at falling thresholds; the first of each is 0."""
        hits = hit / hit[-1]
        has_alarms = good > 0
        low, high = np.log(limits)
        x = (np.log(good[has_alarms] / good[-1]) - low) / (high - low)
        return cls(x, hits[has_alarms], float(hits[~has_alarms][-1]))

    def height(self) -> float:
        """Return the mean height from 0 to 1, by trapezoids."""
        x, hits = self.x, self.hits
        if x[0] > 0:
            x = np.concatenate([[0.0, x[0]], x])
            hits = np.concatenate([[self.free_hits] * 2, hits])
        inside = (x >= 0) & (x <= 1)
        ends = np.interp([0.0, 1.0], x, hits)
        return float(
            np.trapezoid(
                np.concatenate([ends[:1], hits[inside], ends[1:]]),
                np.concatenate([[0.0], x[inside], [1.0]]),
            )
        )

    def height_error_bound(self) -> float:
        """Return how far `height` can be from that of the curve through every distinct score.

        Inside a cell the true curve rises somehow from corner to corner of a box, whose diagonal
        is our trapezoid: half the box at most. Of a box that an end of the range cuts, and of that
        before the first false alarm, where ours is level, all of it.
        """
        x = np.concatenate([[-np.inf], self.x])
        boxes = np.diff(np.clip(x, 0, 1)) * np.diff(np.concatenate([[self.free_hits], self.hits]))
        is_cut = ((x[:-1] < 0) & (x[1:] > 0)) | ((x[:-1] < 1) & (x[1:] > 1))
        return float(boxes.sum() + boxes[is_cut].sum()) / 2
