"""Training images are measured by maps that are lowered outside, as those of new images are."""

import numpy as np

from patchlake.pipeline.groups.calibrate import Calibrator
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.methods.shared.contract import FitResult, Scores

GEOMETRY = Geometry((32, 32), None)


class Fixed:
    """Scores each image alike: highest outside."""

    def __init__(self, grid: np.ndarray) -> None:
        self.grid = grid.astype(np.float32)

    def score(self, embeddings, own=None):  # noqa: ARG002
        count = len(embeddings["patches"])
        return Scores(np.full(count, 7, np.float32), np.stack([self.grid] * count))


def test_peak_and_spread_are_those_of_the_patches_inside():
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    interior = Interior.of(inside)
    grid = np.full((4, 4), 100.0)
    grid[1:3, 1:3] = [[1, 2], [3, 4]]
    calibrator = Calibrator(FitResult({}), Fixed(grid), GEOMETRY)
    images = [{"patches": np.zeros((1, 4, 4, 2), np.float32)}] * 2
    (one, two) = calibrator.samples(images, [5, 6], None, [interior, Interior.of(inside | True)])
    lowered = np.full((4, 4), 1, np.float32)
    lowered[1:3, 1:3] = [[1, 2], [3, 4]]
    frame = GEOMETRY.to_frame(lowered, (32, 32), (32, 32))
    assert (one.image, one.score, one.peak) == (5, 7, frame.max())
    assert (one.patch_mean, one.patch_std) == (2.5, np.std([1, 2, 3, 4]))
    assert two.peak > 90
    assert two.patch_mean == grid.mean()
