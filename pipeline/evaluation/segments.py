"""SegF1, and the defects that are hit, where anomaly maps are cut at a fixed threshold.

SegF1 is F1 over all pixels of all images together: 2 TP / (2 TP + FP + FN). The share of regions
that are hit counts a defect as found by its first pixel, however large it is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


@dataclass
class Segments:
    """Counts of pixels and regions, which do not depend on the order of the images.

    Attributes:
        true_positives: Defective pixels that are predicted.
        false_positives: Good pixels that are.
        false_negatives: Defective pixels that are not.
        regions: 8-connected regions of the defect masks.
        regions_hit: Those of them with a predicted pixel.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    regions: int = 0
    regions_hit: int = 0

    def add(
        self,
        is_predicted: Bool[np.ndarray, "height width"],
        defect_mask: Bool[np.ndarray, "height width"],
    ) -> None:
        """Count the pixels and regions of one image; the mask of a good one is all False."""
        hit = int(np.count_nonzero(is_predicted & defect_mask))
        self.true_positives += hit
        self.false_positives += int(np.count_nonzero(is_predicted)) - hit
        self.false_negatives += int(np.count_nonzero(defect_mask)) - hit
        labels, regions = ndimage.label(defect_mask, structure=np.ones((3, 3)))  # 8-connected
        touched = np.bincount(labels[is_predicted], minlength=regions + 1)[1:]
        self.regions += int(regions)
        self.regions_hit += int(np.count_nonzero(touched))

    def f1(self) -> float | None:
        """Return F1 of the pixels, 0..1; None where no pixel is defective."""
        if self.true_positives + self.false_negatives == 0:
            return None
        wrong = self.false_positives + self.false_negatives
        return 2 * self.true_positives / (2 * self.true_positives + wrong)

    def region_hit_rate(self) -> float | None:
        """Return the share of regions that are hit, 0..1; None without a region."""
        return self.regions_hit / self.regions if self.regions else None
