"""Images that join or leave a method's model, against a fit of those that are there in the end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.gaussian import (
    Moments,
    covariance_of,
    merge,
    packed,
    unpacked,
    whitener,
)
from patchlake.pipeline.maths.gaussian import without as left_of
from patchlake.pipeline.maths.shrinkage import Powers
from patchlake.pipeline.methods.dn2 import DN2
from patchlake.pipeline.methods.mahalanobis import Mahalanobis
from patchlake.pipeline.methods.padim import PaDiM
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.methods.shared.bank import MemoryBank, closed_up
from patchlake.pipeline.methods.shared.contract import EarlierModel, Updatable
from patchlake.pipeline.methods.spade import SPADE
from tests.methods.corpus import FakeCorpus, FakeGroup, split
from tests.methods.test_mahalanobis import features
from tests.methods.test_padim import random_patches
from tests.methods.test_patchcore import brute_force_near, random_embeddings
from tests.methods.test_spade import images


def earlier_of(found, count):
    return EarlierModel(count, found.facts, found.state, found.statistics, found.bank)


def take(embeddings, images_):
    return {name: array[images_] for name, array in embeddings.items()}


def corpus(embeddings, *sizes, **options):
    return FakeCorpus(split(embeddings, *sizes), **options)


def joined(method, embeddings, first, **options):
    """The model of the first images, which the others have joined."""
    count = len(next(iter(embeddings.values())))
    before = method.fit(corpus(take(embeddings, slice(first)), **options), seed=3)
    others = corpus(take(embeddings, slice(first, count)), 2, **options)
    return method.update(earlier_of(before, first), others, seed=3)


def left(method, found, embeddings, gone):
    count = len(next(iter(embeddings.values())))
    numbers = np.array(gone)
    theirs = corpus(take(embeddings, numbers)) if method.leaves_by_embedding else None
    return method.withdraw(earlier_of(found, count), numbers, theirs, seed=3)


# Rows far from zero, as means that move show most there.
@settings(max_examples=40)
@given(
    counts=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    dim=st.integers(1, 6),
    offset=st.sampled_from([0.0, -7.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_moments_and_powers_of_a_union_come_apart_again(counts, dim, offset, seed):
    rng = np.random.default_rng(seed)
    rows = rng.gamma(1.0, size=(sum(counts), dim)).astype(np.float32) + np.float32(offset)
    one, other = np.split(rows, [counts[0]])
    first, second, whole = (Moments.of(part) for part in (one, other, rows))
    powers = [Powers.of(part, m.mean) for part, m in ((one, first), (other, second))]
    both = merge(first, second)

    union = powers[0].about(first, both.mean) + powers[1].about(second, both.mean)
    expected = Powers.of(rows, whole.mean)
    assert union.fourth == pytest.approx(expected.fourth, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(union.third, expected.third, rtol=1e-6, atol=1e-6)

    back = left_of(both, second)
    assert back.count == first.count
    np.testing.assert_allclose(back.mean, first.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(back.scatter, first.scatter, rtol=1e-6, atol=1e-6)
    moved = union.about(both, first.mean) - Powers.of(other, first.mean)
    np.testing.assert_allclose(moved.third, powers[0].third, rtol=1e-6, atol=1e-5)
    assert moved.fourth == pytest.approx(powers[0].fourth, rel=1e-6, abs=1e-5)


def test_nothing_cannot_be_left():
    moments = Moments.of(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="without 3 of 3 rows none is left"):
        left_of(moments, moments)


def test_a_covariance_comes_back_from_its_rounded_whitening():
    """Relative in every direction, the hardest included: 1e-5 where the condition is 1e5."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    covariance = (basis * np.geomspace(0.01, 1000, 40)) @ basis.T
    rounded = unpacked(packed(whitener(covariance[None])), 40).astype(np.float64)
    exact = whitener(covariance)
    seen = exact @ covariance_of(rounded)[0] @ exact.T
    assert np.abs(seen - np.eye(40)).max() < 1e-5
    # To round the covariance itself costs more there.
    kept = exact @ covariance.astype(np.float32).astype(np.float64) @ exact.T
    assert np.abs(kept - np.eye(40)).max() > np.abs(seen - np.eye(40)).max()


@pytest.mark.parametrize("memory_budget", [2**30, 5000])
@pytest.mark.parametrize("first", [1, 2, 4, 30])
def test_padim_is_what_a_fit_of_all_gives(first, memory_budget):
    patches = {"patches": random_patches(40)}
    method = PaDiM(dimensions=5)
    found = joined(method, patches, first, memory_budget=memory_budget)
    whole = method.fit(corpus(patches), seed=3)
    assert found.state["count"] == 40
    assert found.facts == whole.facts
    test = {"patches": random_patches(6, seed=1)}
    scores = [method.prepare(FakeGroup(f)).score(test) for f in (found, whole)]
    np.testing.assert_allclose(*(s.anomaly_maps for s in scores), rtol=2e-5)


def test_padim_without_an_image_is_what_a_fit_without_it_gives():
    patches = {"patches": random_patches(40)}
    method = PaDiM(dimensions=5)
    found = left(method, joined(method, patches, 20), patches, [3, 25])
    stay = np.delete(np.arange(40), [3, 25])
    whole = method.fit(corpus(take(patches, stay)), seed=3)
    test = {"patches": random_patches(6, seed=1)}
    scores = [method.prepare(FakeGroup(f)).score(test) for f in (found, whole)]
    np.testing.assert_allclose(*(s.anomaly_maps for s in scores), rtol=2e-5)


def test_thirty_updates_of_padim_stay_near_a_fit_of_all():
    patches = {"patches": random_patches(40, height=1, width=1, dim=8)}
    method = PaDiM(dimensions=8)
    found = method.fit(corpus(take(patches, slice(10))), seed=0)
    for number in range(10, 40):
        new = corpus(take(patches, slice(number, number + 1)))
        found = method.update(earlier_of(found, number), new, seed=0)
    whole = method.fit(corpus(patches), seed=0)
    test = {"patches": random_patches(20, seed=1, height=1, width=1, dim=8)}
    scores = [method.prepare(FakeGroup(f)).score(test) for f in (found, whole)]
    np.testing.assert_allclose(*(s.anomaly_maps for s in scores), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"covariance": "oas"}])
@pytest.mark.parametrize("first", [1, 2, 30])
def test_mahalanobis_is_what_a_fit_of_all_gives(first, options):
    train, method = features(40), Mahalanobis(**options)
    found, whole = joined(method, train, first), method.fit(corpus(train), seed=3)
    assert found.state.keys() == whole.state.keys()
    for name, array in whole.state.items():
        np.testing.assert_allclose(found.state[name], array, rtol=1e-6, atol=1e-9, err_msg=name)
    for name, array in whole.statistics.items():
        np.testing.assert_allclose(found.statistics[name], array, rtol=1e-6, atol=1e-6)

    shorter = left(method, found, train, [0, 35])
    rest = method.fit(corpus(take(train, np.delete(np.arange(40), [0, 35]))), seed=3)
    for name, array in rest.state.items():
        np.testing.assert_allclose(shorter.state[name], array, rtol=1e-5, atol=1e-8, err_msg=name)


def test_mahalanobis_says_what_its_statistics_cannot_give():
    train = features(20)
    with pytest.raises(ConfigError, match="directions=pca with covariance=ledoit_wolf"):
        joined(Mahalanobis(directions="pca"), train, 10)
    method = Mahalanobis(directions="npca", covariance="oas")
    found, whole = joined(method, train, 10), method.fit(corpus(train), seed=3)
    for name, array in whole.state.items():
        if "whitening" not in name:
            np.testing.assert_allclose(found.state[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", [PaDiM(dimensions=5), Mahalanobis()])
def test_no_gaussian_is_left_of_no_image(method):
    embeddings = {"patches": random_patches(3)} if isinstance(method, PaDiM) else features(3)
    found = method.fit(corpus(embeddings), seed=3)
    with pytest.raises(ConfigError, match=r"(none|0) of (the )?3 images would be left"):
        left(method, found, embeddings, [0, 1, 2])


@given(
    fraction=st.floats(0.02, 1),
    first=st.integers(1, 7),
    seed=st.integers(0, 99),
    strategy=st.sampled_from(["driver", "distributed", "partitioned"]),
)
@settings(max_examples=20)
def test_patchcores_bank_covers_all_images_within_its_bound(fraction, first, seed, strategy):
    embeddings = {"patches": random_embeddings(8, seed=seed)}
    method = PatchCore(coreset_fraction=fraction, coreset=strategy)
    found = joined(method, embeddings, first)
    before = method.fit(corpus(take(embeddings, slice(first))), seed=3)
    assert found.facts["patches"] == 8 * 20
    assert len(found.bank.rows) >= min(max(1, int(160 * fraction)), 160 - 20 * first)
    np.testing.assert_array_equal(found.bank.rows[: len(before.bank.rows)], before.bank.rows)
    assert_rows_are_where_they_say(found.bank, embeddings["patches"])
    assert farthest(embeddings, found.bank) <= found.facts["radius_bound"] * (1 + 1e-5) + 1e-6

    gone = [first - 1, 7] if first < 7 else [7]
    of_gone = np.isin(found.bank.origin[:, 0], gone)
    if of_gone.all():
        return
    shorter = left(method, found, embeddings, gone)
    rest = take(embeddings, np.delete(np.arange(8), gone))
    assert shorter.facts["patches"] == 20 * (8 - len(gone))
    assert len(shorter.bank.rows) == np.count_nonzero(~of_gone)
    assert_rows_are_where_they_say(shorter.bank, rest["patches"])
    assert farthest(rest, shorter.bank) <= shorter.facts["radius_bound"] * (1 + 1e-5) + 1e-6


@given(
    fraction=st.floats(0.02, 0.5),
    first=st.integers(1, 7),
    seed=st.integers(0, 99),
    strategy=st.sampled_from(["driver", "partitioned"]),
    radius=st.integers(0, 2),
)
@settings(max_examples=20)
def test_near_places_the_bank_covers_all_images_within_its_bound(
    fraction, first, seed, strategy, radius
):
    embeddings = {"patches": random_embeddings(8, seed=seed)}
    method = PatchCore(coreset_fraction=fraction, coreset=strategy, position_radius=radius)
    found = joined(method, embeddings, first)
    before = method.fit(corpus(take(embeddings, slice(first))), seed=3)
    np.testing.assert_array_equal(found.bank.rows[: len(before.bank.rows)], before.bank.rows)
    assert_rows_are_where_they_say(found.bank, embeddings["patches"])
    np.testing.assert_array_equal(found.state["places"], found.bank.origin[:, 1:])
    assert found.facts["uncovered_places"] == 0
    assert_within_the_bound(embeddings, found, radius)

    gone = [first - 1, 7] if first < 7 else [7]
    of_gone = np.isin(found.bank.origin[:, 0], gone)
    if of_gone.all():
        return
    shorter = left(method, found, embeddings, gone)
    rest = take(embeddings, np.delete(np.arange(8), gone))
    assert_rows_are_where_they_say(shorter.bank, rest["patches"])
    np.testing.assert_array_equal(shorter.state["places"], shorter.bank.origin[:, 1:])
    assert_within_the_bound(rest, shorter, radius)
    # And once more, where some places may be without rows; then images join, and all have some.
    count = 8 - len(gone)
    last = method.update(
        earlier_of(shorter, count), corpus(take(embeddings, np.array(gone))), seed=3
    )
    assert last.facts["uncovered_places"] == 0
    assert ("radius_bound" in last.facts) == (shorter.facts["uncovered_places"] == 0)
    if "radius_bound" in last.facts:
        assert_within_the_bound(embeddings, last, radius)
    if not np.isin(shorter.bank.origin[:, 0], [0]).all():
        again = left(method, shorter, rest, [0])
        assert_within_the_bound(take(rest, slice(1, None)), again, radius)


def assert_within_the_bound(embeddings, found, radius):
    places = found.bank.origin[:, 1:]
    farthest_ = brute_force_near(embeddings["patches"], found.bank.rows, places, radius).max()
    assert farthest_ <= found.facts["radius_bound"] * (1 + 1e-5) + 1e-6


def test_a_place_that_loses_its_rows_is_compared_with_the_next_ones():
    """Of two images of 2 x 1 patches, radius 0: what is left is the other one's upper patch."""
    patches = np.array([[0, 10], [1, 20]], np.float32).reshape(2, 2, 1, 1)
    method = PatchCore(coreset_fraction=0.01, position_radius=0)
    bank = MemoryBank(
        np.array([[0], [20]], np.float32), origin=np.array([[0, 0, 0], [1, 1, 0]], np.int64)
    )
    facts = {"patches": 4.0, "coreset": "driver", "covering_radius": 10.0}
    grid = np.array([2, 1], np.int32)
    state = {"places": bank.origin[:, 1:].astype(np.int32), "grid": grid}
    earlier = EarlierModel(2, facts, state, {}, bank)

    found = method.withdraw(earlier, np.array([1]), None, seed=0)

    assert found.facts["uncovered_places"] == 1
    assert found.facts["radius_bound"] == 30
    scored = method.prepare(FakeGroup(found)).score({"patches": patches})
    np.testing.assert_array_equal(scored.anomaly_maps.reshape(2, 2), [[0, 10], [1, 20]])


def assert_rows_are_where_they_say(bank, patches):
    image, y, x = bank.origin.T
    np.testing.assert_array_equal(bank.rows, patches[image, y, x])


def farthest(embeddings, bank):
    rows = embeddings["patches"].reshape(-1, 1, bank.rows.shape[1]).astype(np.float64)
    return np.linalg.norm(rows - bank.rows, axis=2).min(axis=1).max()


@pytest.mark.parametrize("projection", [None, 3])
def test_workers_and_driver_let_patchcore_go_on_alike(projection):
    embeddings = {"patches": random_embeddings(12)}
    banks = [
        joined(
            PatchCore(coreset_fraction=0.3, coreset=strategy, projection=projection), embeddings, 5
        ).bank.rows
        for strategy in ("driver", "distributed")
    ]
    np.testing.assert_array_equal(*banks)


def test_no_bank_is_left_without_its_images():
    embeddings = {"patches": random_embeddings(2)}
    method = PatchCore(coreset_fraction=0.1)
    found = method.fit(corpus(embeddings), seed=3)
    with pytest.raises(ConfigError, match="none of 4 rows of the memory bank is left"):
        left(method, found, embeddings, [0, 1])


def test_dn2_is_what_a_fit_of_all_gives():
    train = {"pooled": np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)}
    found, whole = joined(DN2(), train, 5), DN2().fit(corpus(train), seed=3)
    np.testing.assert_array_equal(found.bank.rows, whole.bank.rows)
    np.testing.assert_array_equal(found.bank.origin, whole.bank.origin)
    shorter = left(DN2(), found, train, [0, 6])
    np.testing.assert_array_equal(shorter.bank.rows, np.delete(train["pooled"], [0, 6], axis=0))
    np.testing.assert_array_equal(shorter.bank.origin[:, 0], np.arange(7))


@pytest.mark.parametrize("gallery", ["neighbours", "same_location", "coreset"])
def test_spades_facts_are_those_of_a_fit_of_all(gallery):
    train, method = images(9), SPADE(gallery=gallery, coreset_fraction=0.5, retrieved=4)
    found, whole = joined(method, train, 5), method.fit(corpus(train), seed=3)
    assert found.facts == whole.facts
    np.testing.assert_array_equal(found.bank.rows, whole.bank.rows)
    shorter = left(method, found, train, [0, 6])
    np.testing.assert_array_equal(shorter.bank.rows, np.delete(train["pooled"], [0, 6], axis=0))
    if gallery != "coreset":
        rest = method.fit(corpus(take(train, np.delete(np.arange(9), [0, 6]))), seed=3)
        assert shorter.facts == pytest.approx(rest.facts)
        return
    for name in ("layer0", "layer1"):
        owners = found.state[f"{name}.images"]
        assert set(owners[len(owners) // 2 :]) & {5, 6, 7, 8}
        stays = ~np.isin(owners, [0, 6])
        np.testing.assert_array_equal(shorter.state[name], found.state[name][stays])
        expected = closed_up(owners[stays], np.array([0, 6]))
        np.testing.assert_array_equal(shorter.state[f"{name}.images"], expected)


def test_numbers_close_up():
    numbers = closed_up(np.array([0, 2, 3, 7]), np.array([6, 1, 6, 4]))
    assert numbers.tolist() == [0, 1, 2, 4]


def test_methods_say_that_they_can():
    assert all(
        isinstance(kind(), Updatable) for kind in (DN2, Mahalanobis, PaDiM, PatchCore, SPADE)
    )


def test_too_few_images_of_a_gaussian_cannot_be_had_back():
    embeddings = {"patches": np.random.default_rng(0).normal(size=(41, 2, 2, 3)).astype("f4")}
    method = PaDiM(dimensions=3)
    found = method.fit(corpus(embeddings), seed=3)
    with pytest.raises(ConfigError, match="2 of 41 images would be left: too few"):
        left(method, found, embeddings, range(39))
    stays = left(method, found, embeddings, range(38)).state
    alone = method.fit(corpus(take(embeddings, slice(38, 41))), seed=3).state
    for name, array in alone.items():
        np.testing.assert_allclose(stays[name], array, rtol=1e-3, atol=1e-3)
