"""Conformal p-values: their definition, their promise, and the threshold that says the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.scores.conformal import Conformal, parts_needed

# Few values, so that there are ties.
SCORES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=30).map(
    lambda rows: (np.array([a for a, _ in rows], np.float32), np.array([b for _, b in rows]))
)
RATES = st.floats(0.001, 0.999)


def by_definition(scores, parts, new):
    """p = (1 + sum over parts of the share of its scores that are as high) / (K + 1)."""
    names = sorted(set(parts.tolist()))
    shares = [
        np.mean([s >= new for s, p in zip(scores, parts, strict=True) if p == n]) for n in names
    ]
    return (1 + sum(shares)) / (len(names) + 1)


@given(SCORES, st.lists(st.integers(-1, 11), min_size=1, max_size=5))
def test_p_values_are_their_definition(calibration, new):
    found = Conformal.of(*calibration).p_values(np.array(new, np.float32))
    np.testing.assert_allclose(found, [by_definition(*calibration, n) for n in new], rtol=1e-12)


@given(SCORES, RATES)
def test_above_the_threshold_and_only_there_is_the_rate_kept(calibration, rate):
    scores, parts = calibration
    found = Conformal.of(scores, parts)
    threshold = found.threshold(rate)
    assert threshold in scores
    new = np.arange(-1, 12, 0.5, dtype=np.float32)
    promised = max(rate, found.smallest)
    np.testing.assert_array_equal(new > threshold, found.p_values(new) <= promised + 1e-9)


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_images_and_the_names_of_parts_do_not_count(calibration, random):
    scores, parts = calibration
    order = list(range(len(scores)))
    random.shuffle(order)
    one = Conformal.of(scores, parts)
    other = Conformal.of(scores[order], 7 - parts[order])
    assert one.parts == other.parts
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.tails, other.tails)


@given(SCORES, st.integers(-1, 11))
def test_a_part_counts_once_however_often_it_was_taken(calibration, new):
    scores, parts = calibration
    once, thrice = Conformal.of(scores, parts), Conformal.of(np.tile(scores, 3), np.tile(parts, 3))
    at = np.array([new], np.float32)
    np.testing.assert_allclose(once.p_values(at), thrice.p_values(at), rtol=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("shots", [1, 6])
def test_of_new_parts_no_more_are_called_anomalous_than_was_promised(rate, shots):
    """2,000 times: parts with a level of their own, shots that differ little from it."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(2_000):
        levels = rng.standard_t(3, 121)
        scores = (levels[:, None] + 0.1 * rng.standard_normal((121, shots))).astype(np.float32)
        counts = rng.integers(1, shots + 1, 120)
        parts = np.repeat(np.arange(120), counts)
        kept = np.concatenate([row[:n] for row, n in zip(scores, counts, strict=False)])
        alarms.append(scores[120, 0] > Conformal.of(kept, parts).threshold(rate))
    # Three standard errors of 2,000 coins; and it is not far below, or nothing would be found.
    error = 3 * np.sqrt(rate * (1 - rate) / 2_000)
    assert rate - 1 / 121 - error <= np.mean(alarms) <= rate + error


def test_as_if_shots_were_parts_the_promise_would_not_hold():
    """Why parts are looked for: the shots of few parts look like many scores."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(500):
        levels = rng.standard_normal(11)
        scores = (levels[:, None] + 0.01 * rng.standard_normal((11, 50))).astype(np.float32)
        one_each = np.arange(500)
        alarms.append(scores[10, 0] > Conformal.of(scores[:10].ravel(), one_each).threshold(0.05))
    assert np.mean(alarms) > 0.08


def test_what_cannot_be_promised_is_said():
    found = Conformal.of(np.array([1, 5, 3], np.float32), np.arange(3))
    assert found.smallest == 0.25
    assert found.threshold(0.01) == found.threshold(0.25) == 5
    assert parts_needed(0.01) == 99
    assert parts_needed(0.25) == 3
    with pytest.raises(ValueError, match="no good image"):
        Conformal.of(np.empty(0, np.float32), np.empty(0, np.int64)).threshold(0.1)
