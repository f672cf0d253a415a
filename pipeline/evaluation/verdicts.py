"""Recall, false alarms, precision and F1 of verdicts, with intervals by a bootstrap over parts.

Pictures of one part are not independent of one another, so it is parts that are drawn with
replacement (the cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8); the interval is from the 2.5th to the 97.5th percentile of the rates so drawn.

Parts with equal counts are drawn as one kind: how often a kind is drawn is multinomial, by its
number of parts. That is the same distribution, needs as many numbers as there are kinds, not
parts, and makes the order of parts and their names no matter.

Deliberate difference: where a rate is 0 or 1, every resample has it too, and a bootstrap would
claim certainty after one part. There the interval is the exact one of Clopper and Pearson
(Biometrika 1934) over the parts that the rate counts, of which all agree; for F1, whose 0 or 1
means the same of each part, it is cautious.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

Interval = tuple[float, float]

_RESAMPLES = 1000
_SEED = 0
# 95 %: this much is left out at each side.
_TAIL = 0.025
# Numbers that are drawn at once: 2**20 int64 are 8 MB.
_DRAWN_AT_ONCE = 2**20


class Confusion(NamedTuple):
    """Images by verdict and label: positive is what is called anomalous."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


# Whether an image is flagged, and whether it is anomalous -> its place in `Confusion`.
_PLACES = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}


class Rate(NamedTuple):
    """A rate 0..1 and its 95 % interval; None where there is nothing to say it of."""

    value: float | None
    interval: Interval | None


class Rates(NamedTuple):
    """What verdicts are judged by."""

    # Anomalous images that are called so, of all anomalous ones.
    recall: Rate
    # Good images that are called anomalous, of all good ones.
    false_alarm_rate: Rate
    # Anomalous images, of all that are called so. Depends on how many there are of each.
    precision: Rate
    # Harmonic mean of recall and precision; None without an anomalous image.
    f1: Rate


@dataclass
class Verdicts:
    """Counts of images by part; memory is some 300 bytes for each part that has a name."""

    # In the order of `Confusion`: images that are a part of their own, and images of each part.
    _alone: list[int] = field(default_factory=lambda: [0] * 4)
    _parts: dict[str, list[int]] = field(default_factory=dict)

    def add(
        self, part_id: str | None, *, is_flagged: bool, is_anomalous: bool, images: int = 1
    ) -> None:
        """Count an image, or several.

        Args:
            part_id: Images with the same one are of one part; None: a part of its own.
            is_flagged: What the verdict says.
            is_anomalous: What the label says.
            images: How many; without a `part_id` each is a part of its own.
        """
        counts = self._alone if part_id is None else self._parts.setdefault(part_id, [0] * 4)
        counts[_PLACES[is_flagged, is_anomalous]] += images

    @property
    def parts(self) -> int:
        """Number of parts."""
        return sum(self._alone) + len(self._parts)

    def confusion(self) -> Confusion:
        """Return the counts of all images."""
        columns = zip(self._alone, *self._parts.values(), strict=True)
        return Confusion(*(sum(column) for column in columns))

    def rates(self) -> Rates:
        """Return all rates; the same for any order in which the images came.

        An interval is None where its rate is, and where a single part has both kinds of image.
        """
        kinds, numbers = self._kinds()
        found = _fractions(numbers @ kinds)
        drawn = _fractions(_resampled(kinds, numbers))
        of_kinds = _fractions(kinds)
        rates = {}
        for name, fraction in found.items():
            parts = int(numbers[of_kinds[name].whole > 0].sum())
            rates[name] = _rate(fraction, drawn[name], parts)
        return Rates(**rates)

    def _kinds(self) -> tuple[Int64[np.ndarray, "kinds 4"], Int64[np.ndarray, " kinds"]]:
        """Return the distinct counts of parts in the order of their values, and parts of each."""
        rows = np.array([*np.eye(4, dtype=np.int64), *self._parts.values()], np.int64)
        numbers = np.array([*self._alone, *[1] * len(self._parts)], np.int64)
        kinds, kind = np.unique(rows, axis=0, return_inverse=True)
        totals = np.zeros(len(kinds), np.int64)
        np.add.at(totals, kind, numbers)
        return kinds[totals > 0], totals[totals > 0]


class _Fraction(NamedTuple):
    """A share of a whole, as counts."""

    share: Int64[np.ndarray, "*counts"]
    whole: Int64[np.ndarray, "*counts"]


def _fractions(counts: Int64[np.ndarray, "*counts 4"]) -> dict[str, _Fraction]:
    """Return each rate of `Rates` by its name, from counts in the order of `Confusion`."""
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    has_defect = tp + fn > 0
    return {
        "recall": _Fraction(tp, tp + fn),
        "false_alarm_rate": _Fraction(fp, fp + tn),
        "precision": _Fraction(tp, tp + fp),
        "f1": _Fraction(2 * tp, np.where(has_defect, 2 * tp + fp + fn, 0)),
    }


def _resampled(
    kinds: Int64[np.ndarray, "kinds 4"], numbers: Int64[np.ndarray, " kinds"]
) -> Int64[np.ndarray, "resamples 4"]:
    """Return the counts of resamples of as many parts as there are."""
    parts = int(numbers.sum())
    if parts == 0:
        return np.zeros((_RESAMPLES, 4), np.int64)
    rng = np.random.default_rng(_SEED)
    block = max(1, _DRAWN_AT_ONCE // len(kinds))
    return np.concatenate(
        [
            rng.multinomial(parts, numbers / parts, min(block, _RESAMPLES - done)) @ kinds
            for done in range(0, _RESAMPLES, block)
        ]
    )


def _rate(found: _Fraction, drawn: _Fraction, parts: int) -> Rate:
    """Return a rate and its interval, of the parts that it counts."""
    if found.whole == 0:
        return Rate(None, None)
    value = float(found.share / found.whole)
    if value in (0.0, 1.0):
        margin = 1 - _TAIL ** (1 / parts)
        return Rate(value, (0.0, margin) if value == 0.0 else (1 - margin, 1.0))
    if parts == 1:
        return Rate(value, None)
    # Resamples without a single image that the rate is of are left out.
    known = drawn.whole > 0
    low, high = np.quantile(drawn.share[known] / drawn.whole[known], [_TAIL, 1 - _TAIL])
    return Rate(value, (float(low), float(high)))
