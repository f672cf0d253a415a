"""Combine the scores of several models, the members of an ensemble: means of standardised scores.

Each member's scores and maps are standardised by the mean and standard deviation of normal images
(`pipeline.scores.calibration`), which were measured when it was fitted. So a score does not depend
on the other images that are scored in the same run. It would with min-max scaling over a test set,
by which published ensembles are combined.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.maths.resampling import bilinear_matrix
from patchlake.pipeline.scores.calibration import Calibration


def ensemble_scores(
    scores: Sequence[Float32[np.ndarray, " images"]], members: Sequence[Calibration]
) -> Float32[np.ndarray, " images"]:
    """Return the mean of the members' standardised scores, in deviations of normal images."""
    standard = [
        member.scores.standardise(values) for member, values in zip(members, scores, strict=True)
    ]
    return np.asarray(np.mean(standard, axis=0, dtype=np.float64), np.float32)


def ensemble_maps(
    maps: Sequence[Float32[np.ndarray, "images _rows _columns"] | None],
    members: Sequence[Calibration],
) -> Float32[np.ndarray, "images rows columns"] | None:
    """Return the mean of the members' standardised maps, on the finest of their grids.

    Each member has a grid of its own. Members without maps are left out; None if no member has
    maps.
    """
    present = [
        member.patches.standardise(grid)
        for member, grid in zip(members, maps, strict=True)
        if grid is not None and member.patches is not None
    ]
    if not present:
        return None
    rows = max(grid.shape[1] for grid in present)
    columns = max(grid.shape[2] for grid in present)
    aligned = [
        bilinear_matrix(rows, grid.shape[1]) @ grid @ bilinear_matrix(columns, grid.shape[2]).T
        for grid in present
    ]
    return np.asarray(np.mean(aligned, axis=0, dtype=np.float64), np.float32)
