"""DN2 against scikit-learn's nearest neighbours."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from patchlake.pipeline.methods.dn2 import DN2
from tests.methods.corpus import FakeCorpus, FakeGroup, own_part, split


def pooled(images, seed=0, dim=7):
    rng = np.random.default_rng(seed)
    return {"pooled": rng.normal(size=(images, dim)).astype(np.float32)}


def fitted(train, *sizes, **options):
    method = DN2(**options)
    found = method.fit(FakeCorpus(split(train, *sizes)), seed=0)
    return found, method.prepare(FakeGroup(found))


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_scores_are_scikit_learns_mean_distances(neighbours):
    train, test = pooled(20), pooled(6, seed=1)
    _, detector = fitted(train, 4, 9, neighbours=neighbours)
    oracle = NearestNeighbors(n_neighbors=neighbours).fit(train["pooled"])
    expected = oracle.kneighbors(test["pooled"])[0].mean(axis=1)
    found = detector.score(test)
    np.testing.assert_allclose(found.image_scores, expected, rtol=1e-6)
    assert found.anomaly_maps is None


def test_a_training_image_is_not_its_own_neighbour():
    train = pooled(20)
    found, detector = fitted(train, neighbours=2)
    own = {"pooled": train["pooled"][3, None]}
    oracle = NearestNeighbors(n_neighbors=3).fit(train["pooled"])
    expected = oracle.kneighbors(own["pooled"])[0][0, 1:].mean()
    scores = detector.score(own, own_part(found, 3)).image_scores
    assert scores[0] == pytest.approx(expected)


def test_of_few_training_images_all_count():
    train, test = pooled(2), pooled(3, seed=1)
    _, detector = fitted(train, neighbours=5)
    oracle = NearestNeighbors(n_neighbors=2).fit(train["pooled"])
    expected = oracle.kneighbors(test["pooled"])[0].mean(axis=1)
    np.testing.assert_allclose(detector.score(test).image_scores, expected, rtol=1e-6)


def test_bank_rows_are_the_images_in_order():
    train = pooled(9)
    found, _ = fitted(train, 4, 2)
    np.testing.assert_array_equal(found.bank.rows, train["pooled"])
    assert found.bank.origin[:, 0].tolist() == list(range(9))


def test_the_feature_is_the_mean_of_the_deepest_layer():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 6, 2, 2)]
    embedded = DN2().embed(maps, seed=0)["pooled"]
    torch.testing.assert_close(embedded, maps[1].mean(dim=(2, 3)))
