"""Counts and quantiles in buckets, against numpy on all the scores."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchlake.pipeline.report import counts

SHARES = np.array([0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
SCORES = arrays.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6),
)


@given(SCORES)
def test_a_quantile_is_within_a_thousandth_of_a_score_that_is_there(scores: np.ndarray) -> None:
    counted = counts.Counts()
    counted.add(counts.buckets(scores))
    found = counts.quantiles(*counted.items(), SHARES)
    exact = np.quantile(scores.astype(np.float64), SHARES, method="inverted_cdf")
    np.testing.assert_allclose(found, exact, rtol=1.001e-3, atol=1e-9)


@given(SCORES)
def test_buckets_rise_with_scores(scores: np.ndarray) -> None:
    rising = counts.buckets(np.sort(scores))
    assert (np.diff(rising) >= 0).all()
    assert rising.min() >= 0
    assert rising.max() < 2**counts.BITS


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=8), st.randoms())
def test_counts_do_not_hang_on_the_order(batches: list[list[int]], random: object) -> None:
    one, other = counts.Counts(), counts.Counts()
    for batch in batches:
        one.add(np.array(batch, np.int64))
    every = [key for batch in batches for key in batch]
    random.shuffle(every)
    for key in every:
        other.add(np.array([key], np.int64))
        other.items()
    assert [x.tolist() for x in one.items()] == [x.tolist() for x in other.items()]
    keys, numbers = one.items()
    assert dict(zip(keys.tolist(), numbers.tolist(), strict=True)) == {
        key: every.count(key) for key in set(every)
    }
    some, _ = one.between(5, 10)
    assert some.tolist() == sorted({key for key in every if 5 <= key < 10})


def test_nothing_has_no_quantile() -> None:
    assert np.isnan(counts.quantiles(np.empty(0, np.int64), np.empty(0, np.int64), SHARES)).all()
