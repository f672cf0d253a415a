"""Verdicts: whether an image is anomalous, by a rate of false alarms that is promised."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float32, Float64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from patchlake.pipeline.scores.calibration import Calibration, Judged
from patchlake.pipeline.scores.conformal import Conformal, parts_needed
from patchlake.pipeline.scores.ensemble import ensemble_scores


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a group's scores are judged by."""

    # An image is anomalous above it.
    threshold: float
    # Regions of an anomalous image are where its smoothed map is above it; None without maps.
    pixel_threshold: float | None = None
    # None where the method's own threshold is all that there is.
    calibration: Conformal | None = None
    # Why less is promised than was asked for, in words.
    reservation: str | None = None

    @classmethod
    def of(cls, members: Sequence[Calibration], rate: float) -> "Verdict | None":
        """Return the verdict of a model, or of an ensemble of several; None if there is none.

        A threshold that the method itself was asked for goes before ours.

        Args:
            members: Of each model.
            rate: Share of good images of new parts that may be anomalous, at the most.
        """
        own = members[0].threshold if len(members) == 1 else None
        judged = _together(members)
        if judged is None:
            return None if own is None else cls(own)
        scores, peaks, parts = judged
        images = Conformal.of(scores, parts)
        pixels = None if peaks is None else Conformal.of(peaks, parts)
        return cls(
            threshold=images.threshold(rate) if own is None else own,
            pixel_threshold=None if pixels is None else pixels.threshold(rate),
            calibration=images,
            reservation=_reservation(images, rate) if own is None else None,
        )

    def p_values(self, scores: Float32[np.ndarray, " images"]) -> Float64[np.ndarray, " images"]:
        """Return the p-value of each score; NaN where no image was measured."""
        if self.calibration is None:
            return np.full(len(scores), np.nan)
        return self.calibration.p_values(scores)


@dataclass(frozen=True)
class Judgement:
    """What is said of one image."""

    score: float
    # What it was judged by, as of `Verdict`; None where there is no verdict.
    threshold: float | None = None
    p_value: float | None = None
    pixel_threshold: float | None = None

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None where there is none."""
        if self.threshold is None:
            return None
        # As float32, which the score table has: who compares its columns gets the same answer.
        return bool(np.float32(self.score) > np.float32(self.threshold))


def judgements_of(
    scores: Float32[np.ndarray, " images"], verdict: Verdict | None
) -> Sequence[Judgement]:
    """Return what a verdict, if the group has one, says of each score."""
    if verdict is None:
        return [Judgement(score) for score in scores.tolist()]
    return [
        Judgement(score, verdict.threshold, None if np.isnan(p) else p, verdict.pixel_threshold)
        for score, p in zip(scores.tolist(), verdict.p_values(scores).tolist(), strict=True)
    ]


def _reservation(images: Conformal, rate: float) -> str | None:
    if images.smallest <= rate:
        return None
    return (
        f"a false alarm rate of {rate:g} takes good images of {parts_needed(rate)} parts, and "
        f"those of {images.parts} were measured: {images.smallest:.3g} is promised instead"
    )


# Scores, peaks where there are maps, and parts.
_Measured = tuple[np.ndarray, np.ndarray | None, np.ndarray]


def _together(members: Sequence[Calibration]) -> _Measured | None:
    """Return what an ensemble is judged by: its scores of the images that all members measured.

    The highest point of a mean of maps is at most the mean of their highest points, which stand in
    for it: the threshold of pixels is no lower than it should be.
    """
    judged = [member.judged for member in members if member.judged is not None]
    if len(judged) < len(members):
        return None
    measured = [_arrays(one) for one in judged]
    if len(members) == 1:
        return measured[0]
    images = [np.array(one.images, np.uint64) for one in judged]
    shared = reduce(np.intersect1d, map(_single, images))
    rows = [_rows(one, shared) for one in images]
    parts = _parts([parts[at] for (_, _, parts), at in zip(measured, rows, strict=True)])
    if len(set(parts.tolist())) < 2:  # noqa: PLR2004 - nothing to compare a part with
        return None
    scores = [scores[at] for (scores, _, _), at in zip(measured, rows, strict=True)]
    peaks = [
        member.patches.standardise(peaks[at])
        for member, (_, peaks, _), at in zip(members, measured, rows, strict=True)
        if peaks is not None and member.patches is not None
    ]
    mean = np.asarray(np.mean(peaks, axis=0, dtype=np.float64), np.float32) if peaks else None
    return ensemble_scores(scores, members), mean, parts


def _arrays(judged: Judged) -> _Measured:
    peaks = None if judged.peaks is None else np.array(judged.peaks, np.float32)
    return np.array(judged.scores, np.float32), peaks, np.array(judged.parts, np.int64)


def _parts(of_members: Sequence[np.ndarray]) -> np.ndarray:
    """Return the parts of images of which any member says that they are of one."""
    images = len(of_members[0])
    ends, offset = [], images
    for parts in of_members:
        ends.append(np.stack([np.arange(images), parts.astype(np.int64) + offset]))
        offset += int(parts.max(initial=0)) + 1
    one, two = np.concatenate(ends, axis=1)
    linked = coo_matrix((np.ones(len(one), bool), (one, two)), (offset, offset))
    return np.asarray(connected_components(linked, directed=False)[1][:images])


def _single(images: np.ndarray) -> np.ndarray:
    """Return the images that are there once: of equal files none can be told from another."""
    values, counts = np.unique(images, return_counts=True)
    return np.asarray(values[(counts == 1) & (values != 0)])


def _rows(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = np.argsort(images, kind="stable")
    return np.asarray(order[np.searchsorted(images[order], wanted)])
