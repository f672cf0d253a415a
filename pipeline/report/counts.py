"""Counts that merge, of rows that come in any order and cut: of keys, and of scores in buckets.

The buckets are those of DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees", VLDB 2019): each is 0.2 % wide, so that a quantile
is within 0.1 % of a score that is there, whatever the scale of the scores is. One set of buckets
serves quantiles and the bars of a chart.
"""

import numpy as np

# Keys that wait to be merged, at the least: 8 MB of them.
_PENDING = 2**20
# Ratio of the ends of a bucket.
_RATIO = 1.002
# What is smaller counts as 0. With 32,767 buckets the largest that is told apart is 1e19.
_SMALLEST = 1e-9
_BUCKETS = 2**15
# Of a key, what is left to the bucket.
BITS = 16


class Counts:
    """How often each key came. Memory is that of the distinct keys."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._waiting: list[np.ndarray] = []
        self._pending = 0

    def add(self, keys: np.ndarray) -> None:
        """Count keys, int64; a key that is there twice counts twice."""
        self._waiting.append(np.asarray(keys, np.int64))
        self._pending += len(keys)
        if self._pending >= max(_PENDING, len(self._keys)):
            self._merge()

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct keys, rising, and how often each came."""
        self._merge()
        return self._keys, self._counts

    def between(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys from `low` up to, and without, `high`, and how often each came."""
        keys, counts = self.items()
        begin, end = np.searchsorted(keys, [low, high])
        return keys[begin:end], counts[begin:end]

    def _merge(self) -> None:
        if not self._pending:
            return
        keys, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        every, place = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        total = np.zeros(len(every), np.int64)
        np.add.at(total, place, np.concatenate([self._counts, counts]))
        self._keys, self._counts = every, total
        self._waiting, self._pending = [], 0


def buckets(scores: np.ndarray) -> np.ndarray:
    """Return the bucket of each score, 0 to 65,535, rising with the score; all are finite."""
    size = np.abs(scores.astype(np.float64))
    steps = np.ceil(np.log(np.maximum(size, _SMALLEST) / _SMALLEST) / np.log(_RATIO))
    magnitude = np.clip(steps, 1, _BUCKETS - 1)
    signed = np.where(size <= _SMALLEST, 0, np.sign(scores) * magnitude)
    return (signed + _BUCKETS).astype(np.int64)


def values(found: np.ndarray) -> np.ndarray:
    """Return a score of each bucket, within 0.1 % of all that are in it."""
    signed = found - _BUCKETS
    size = _SMALLEST * np.exp(np.abs(signed) * np.log(_RATIO)) * 2 / (1 + _RATIO)
    found_values: np.ndarray = np.sign(signed) * size
    return found_values


def quantiles(found: np.ndarray, counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the scores that a share of all are at most; NaN where there is none.

    Args:
        found: Buckets, rising.
        counts: Scores in each.
        shares: Above 0, at most 1.
    """
    if not len(found):
        return np.full(len(shares), np.nan)
    upto = np.cumsum(counts)
    wanted = np.maximum(1, np.ceil(shares * upto[-1] - 1e-9))
    return values(found[np.searchsorted(upto, wanted)])
