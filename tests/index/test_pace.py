"""The faster of two ways is used, whichever that is and when it changes."""

import pytest

from patchlake.pipeline.index.pace import _RETRY, _TRIAL, Pace


def run(pace: Pace, calls: int, seconds: dict[bool, float]) -> list[bool]:
    chosen = []
    for _ in range(calls):
        pruned = pace.prunes()
        pace.note(seconds[pruned], pruned=pruned)
        chosen.append(pruned)
    return chosen


@pytest.mark.parametrize("pruned_seconds", [0.2, 0.99, 1.01, 5.0])
def test_the_faster_way_is_taken_after_a_trial_of_both(pruned_seconds):
    pace = Pace()
    trial = run(pace, _TRIAL, {True: pruned_seconds, False: 1.0})
    assert trial.count(True) == trial.count(False)
    later = run(pace, 3 * _RETRY, {True: pruned_seconds, False: 1.0})
    assert later.count(pruned_seconds > 1) == 3


def test_a_slow_start_of_either_way_decides_nothing():
    pace = Pace()
    run(pace, 2, {True: 100.0, False: 0.001})
    later = run(pace, 100, {True: 0.5, False: 1.0})
    assert all(later[_TRIAL - 2 :])


def test_a_change_is_noticed():
    pace = Pace()
    run(pace, _TRIAL + 10, {True: 0.5, False: 1.0})
    # At once where the way in use becomes slow.
    slower = run(pace, 10, {True: 5.0, False: 1.0})
    assert slower.count(True) == 2
    # And within a few retries where the other becomes fast.
    run(pace, 3 * _RETRY, {True: 0.5, False: 1.0})
    assert all(run(pace, 10, {True: 0.5, False: 1.0}))
