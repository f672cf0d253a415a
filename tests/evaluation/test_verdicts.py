"""Rates of verdicts, and their intervals against a slow bootstrap and simulated truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.evaluation import verdicts
from patchlake.pipeline.evaluation.verdicts import Confusion, Rate, Rates, Verdicts

IMAGES = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c", "d"]), st.booleans(), st.booleans()),
    max_size=40,
)


def verdicts_of(images):
    found = Verdicts()
    for part_id, is_flagged, is_anomalous in images:
        found.add(part_id, is_flagged=is_flagged, is_anomalous=is_anomalous)
    return found


def slow_rates(images):
    """Return the rates by their definitions, NaN where there is nothing to say them of."""
    flagged = np.array([f for _, f, _ in images], bool)
    anomalous = np.array([a for _, _, a in images], bool)

    def mean(values):
        return values.mean() if values.size else np.nan

    recall, precision = mean(flagged[anomalous]), mean(anomalous[flagged])
    hits = (flagged & anomalous).sum()
    f1 = 2 * hits / (flagged.sum() + anomalous.sum()) if anomalous.any() else np.nan
    return Rates(recall, mean(flagged[~anomalous]), precision, f1)


def slow_intervals(images, resamples, seed):
    """Return percentiles of rates of parts drawn one by one, and the images of each in full."""
    parts = {}
    for number, image in enumerate(images):
        parts.setdefault(number if image[0] is None else image[0], []).append(image)
    parts, rng = list(parts.values()), np.random.default_rng(seed)
    drawn = [
        slow_rates([image for i in rng.integers(0, len(parts), len(parts)) for image in parts[i]])
        for _ in range(resamples)
    ]
    return np.nanquantile(np.array(drawn), [0.025, 0.975], axis=0).T


@given(images=IMAGES)
def test_rates_are_those_of_the_definition(images):
    found = verdicts_of(images)
    for rate, expected in zip(found.rates(), slow_rates(images), strict=True):
        if np.isnan(expected):
            assert rate == Rate(None, None)
        else:
            assert rate.value == pytest.approx(expected)
    pairs = [(flagged, anomalous) for _, flagged, anomalous in images]
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    assert found.confusion() == Confusion(*(pairs.count(kind) for kind in kinds))
    assert found.parts == len({p for p, _, _ in images if p}) + [p for p, _, _ in images].count(
        None
    )


@given(images=IMAGES, data=st.data())
def test_any_order_and_any_names_of_the_parts_give_the_same_bits(images, data):
    shuffled = data.draw(st.permutations(images))
    names = dict(zip("abcd", data.draw(st.permutations("wxyz")), strict=True))
    renamed = [(names.get(part_id), *image) for part_id, *image in shuffled]
    assert verdicts_of(renamed).rates() == verdicts_of(images).rates()


@given(images=IMAGES)
def test_an_interval_lies_between_0_and_1_and_a_rate_of_0_or_1_is_its_end(images):
    for rate in verdicts_of(images).rates():
        if rate.interval is not None:
            low, high = rate.interval
            assert 0 <= low <= high <= 1
            if rate.value in (0.0, 1.0):
                assert rate.value in (low, high)
                assert low < high


@given(seed=st.integers(0, 10**6), recall=st.floats(0.2, 0.8), alarms=st.floats(0.1, 0.6))
def test_an_interval_contains_the_rate(seed, recall, alarms):
    rng = np.random.default_rng(seed)
    images = []
    for part in range(60):
        anomalous = bool(rng.random() < 0.5)
        for _ in range(rng.integers(1, 4)):
            flagged = bool(rng.random() < (recall if anomalous else alarms))
            images.append((str(part), flagged, anomalous))
    for rate in verdicts_of(images).rates():
        assert rate.interval[0] <= rate.value <= rate.interval[1]


def grouped_images(seed=0, parts=25):
    """Parts of one to five images that mostly share their verdict."""
    rng = np.random.default_rng(seed)
    images = []
    for part in range(parts):
        anomalous, flagged = rng.random(2) < 0.5
        size = int(rng.integers(1, 6))
        images += [
            (f"p{part}", bool(flagged ^ (rng.random() < 0.1)), bool(anomalous)) for _ in range(size)
        ]
    return [*images, *((None, bool(f), bool(a)) for f, a in rng.random((10, 2)) < 0.5)]


def test_intervals_are_those_of_parts_drawn_one_by_one():
    images = grouped_images()
    expected = slow_intervals(images, resamples=4000, seed=1)
    for rate, interval in zip(verdicts_of(images).rates(), expected, strict=True):
        # 1000 resamples leave some 0.01 of chance in each end.
        assert rate.interval == pytest.approx(tuple(interval), abs=0.03)


def test_images_of_one_part_say_less_than_as_many_parts():
    alone = grouped_images()
    images = [(part_id, f, a) for part_id, f, a in alone for _ in range(4)]
    named = [(part_id or f"alone{i}", f, a) for i, (part_id, f, a) in enumerate(alone)]
    in_parts = [image for image in named for _ in range(4)]
    split = [(None, f, a) for _, f, a in images]
    for wide, narrow in zip(verdicts_of(in_parts).rates(), verdicts_of(split).rates(), strict=True):
        assert wide.value == pytest.approx(narrow.value)
        assert np.ptp(wide.interval) > 1.5 * np.ptp(narrow.interval)


def test_intervals_of_binomial_data_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(7)
    truth, covered, trials = (0.8, 0.1), np.zeros(2), 300
    for _ in range(trials):
        found = Verdicts()
        for anomalous, chance, count in ((True, truth[0], 60), (False, truth[1], 120)):
            for flagged in rng.random(count) < chance:
                found.add(None, is_flagged=bool(flagged), is_anomalous=anomalous)
        rates = found.rates()
        for i, (rate, true) in enumerate(
            zip((rates.recall, rates.false_alarm_rate), truth, strict=True)
        ):
            covered[i] += rate.interval[0] <= true <= rate.interval[1]
    # Percentile intervals of few images are a little narrow.
    assert (covered / trials >= 0.90).all()
    assert (covered / trials <= 0.99).all()


def test_where_all_parts_agree_the_interval_is_that_of_clopper_and_pearson():
    rates = verdicts_of([(None, True, True)] * 4 + [(None, False, False)] * 100).rates()
    assert rates.recall == Rate(1.0, (pytest.approx(0.3976, abs=1e-4), 1.0))
    assert rates.false_alarm_rate == Rate(0.0, (0.0, pytest.approx(0.0362, abs=1e-4)))
    assert rates.precision == rates.recall
    # Four pictures of one part are one part.
    one = verdicts_of([("a", True, True)] * 4).rates()
    assert one.recall == Rate(1.0, (pytest.approx(0.025), 1.0))


def test_a_single_part_with_both_kinds_has_no_interval():
    assert verdicts_of([("a", True, True), ("a", False, True)]).rates().recall == Rate(0.5, None)


def test_resamples_in_blocks_are_those_at_once(monkeypatch):
    found = verdicts_of(grouped_images(seed=3))
    at_once = found.rates()
    monkeypatch.setattr(verdicts, "_DRAWN_AT_ONCE", 100)
    assert found.rates() == at_once
