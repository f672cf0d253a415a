"""Mahalanobis AD against scikit-learn, and its threshold against Gaussian data."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn.covariance import OAS, LedoitWolf
from sklearn.decomposition import PCA

from patchlake.pipeline.methods.mahalanobis import Mahalanobis
from tests.methods.corpus import FakeCorpus, FakeGroup, own_part, split

DIMS = {"level0": 3, "level1": 8}


def features(images, *, seed=0, dims=DIMS):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=(images, dim)) * (1 + np.arange(dim)) + 5).astype(np.float32)
        for name, dim in dims.items()
    }


def fitted(train, *sizes, **options):
    method = Mahalanobis(**options)
    found = method.fit(FakeCorpus(split(train, *sizes)), seed=0)
    return found, method.prepare(FakeGroup(found))


@pytest.mark.parametrize(("name", "oracle"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
@pytest.mark.parametrize("images", [4, 50])
def test_scores_are_the_sum_over_levels_of_scikit_learns_distances(name, oracle, images):
    train, test = features(images), features(6, seed=1)
    found, detector = fitted(train, 3, covariance=name)
    expected = np.zeros(6)
    for level, rows in train.items():
        estimate = oracle().fit(rows.astype(np.float64))
        expected += np.sqrt(estimate.mahalanobis(test[level].astype(np.float64)))
        assert found.facts[f"{level}.shrinkage"] == pytest.approx(estimate.shrinkage_, rel=1e-6)
    scores = detector.score(test)
    np.testing.assert_allclose(scores.image_scores, expected, rtol=1e-6)
    assert scores.anomaly_maps is None


@pytest.mark.parametrize("directions", ["pca", "npca"])
def test_directions_split_the_variance(directions):
    train, test = features(60, dims={"level0": 8}), features(5, seed=1, dims={"level0": 8})
    found, detector = fitted(train, directions=directions, variance=0.9)
    rows = train["level0"].astype(np.float64)
    pca = PCA().fit(rows)
    # As the authors' code: the last component that is needed to reach the share, and for NPCA
    # the one before it as well.
    last = int((np.cumsum(pca.explained_variance_ratio_) > 0.9).argmax())
    kept = slice(0, last + 1) if directions == "pca" else slice(last - 1, None)
    assert 0 < last < 7
    axes = pca.components_[kept]
    centred = rows - rows.mean(axis=0)
    estimate = LedoitWolf().fit(centred @ axes.T)
    asked = (test["level0"] - rows.mean(axis=0)) @ axes.T
    expected = np.sqrt(estimate.mahalanobis(asked))
    np.testing.assert_allclose(detector.score(test).image_scores, expected, rtol=1e-5)
    assert found.facts["level0.dimensions"] == len(axes)


@given(st.lists(st.integers(1, 5), max_size=4))
def test_no_partition_of_the_images_changes_the_model(sizes):
    train = features(11)
    whole, _ = fitted(train)
    cut, _ = fitted(train, *sizes)
    for name, array in whole.state.items():
        np.testing.assert_allclose(cut.state[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [30, 400])
def test_a_training_image_is_measured_as_if_it_had_not_been_there(images):
    train = features(images)
    found, detector = fitted(train)
    own = {name: rows[2, None] for name, rows in train.items()}
    measured = detector.score(own, own_part(found, 2)).image_scores
    _, without = fitted({name: np.delete(rows, 2, axis=0) for name, rows in train.items()})
    np.testing.assert_allclose(measured, without.score(own).image_scores, rtol=0.02)
    assert measured > detector.score(own).image_scores


def test_an_image_scores_the_same_to_the_bit_in_any_company():
    _, detector = fitted(features(30))
    test = features(9, seed=1)
    together = detector.score(test).image_scores
    for image in range(9):
        alone = detector.score({name: rows[image, None] for name, rows in test.items()})
        assert alone.image_scores[0] == together[image]


def test_images_that_are_all_alike_can_be_fitted():
    train = {"level0": np.ones((5, 3), np.float32)}
    _, detector = fitted(train)
    assert detector.score(train).image_scores == pytest.approx(0)
    other = {"level0": np.full((1, 3), 2, np.float32)}
    assert detector.score(other).image_scores[0] > 1


def test_the_threshold_has_the_false_positives_that_were_asked_for():
    train = {"level0": features(20_000)["level1"]}
    found, detector = fitted(train, false_positive_rate=0.05)
    new = {"level0": features(20_000, seed=1)["level1"]}
    share = (detector.score(new).image_scores > found.threshold).mean()
    # 20,000 draws: a standard error of 0.0015.
    assert share == pytest.approx(0.05, abs=0.006)


def test_the_threshold_is_the_sum_of_the_levels_quantiles():
    found, _ = fitted(features(10), false_positive_rate=0.05)
    expected = sum(np.sqrt(chi2.ppf(0.95, dim)) for dim in DIMS.values())
    assert found.threshold == pytest.approx(expected, rel=1e-9)


def test_without_a_rate_there_is_no_threshold():
    found, _ = fitted(features(10))
    assert found.threshold is None


def test_levels_are_the_spatial_means():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2)]
    embedded = Mahalanobis().embed(maps, seed=0)
    assert list(embedded) == ["level0", "level1"]
    np.testing.assert_allclose(embedded["level1"], maps[1].numpy().mean(axis=(2, 3)), rtol=1e-6)
