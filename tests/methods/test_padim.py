"""PaDiM on small random features, against the equations written out location by location."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.methods import build, padim
from patchlake.pipeline.methods.padim import PaDiM, chosen_channels, without_itself
from tests.methods.corpus import FakeCorpus, FakeGroup, own_part, split


def random_patches(images, *, seed=0, height=3, width=4, dim=5):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(height, width, dim, dim))
    plain = rng.normal(size=(images, height, width, dim))
    return (np.einsum("nhwd,hwde->nhwe", plain, mixing) + 3).astype(np.float32)


def fitted(patches, *sizes, memory_budget=2**30, **options):
    method = PaDiM(**options)
    corpus = FakeCorpus(split({"patches": patches}, *sizes), memory_budget=memory_budget)
    found = method.fit(corpus, seed=0)
    return found, method.prepare(FakeGroup(found))


def written_out(train, test, regularisation=0.01):
    """M of every location of every test image: the paper's formula, in float64, with an inverse."""
    maps = np.empty(test.shape[:3])
    for y in range(train.shape[1]):
        for x in range(train.shape[2]):
            rows = train[:, y, x].astype(np.float64)
            mean = rows.mean(axis=0)
            covariance = (rows - mean).T @ (rows - mean) / max(1, len(rows) - 1)
            inverse = np.linalg.inv(covariance + regularisation * np.eye(rows.shape[1]))
            for image in range(len(test)):
                u = test[image, y, x] - mean
                maps[image, y, x] = np.sqrt(u @ inverse @ u)
    return maps


# Fewer images than channels, as many, and more.
@pytest.mark.parametrize("images", [1, 2, 3, 5, 40])
def test_maps_are_the_papers_formula(images):
    train, test = random_patches(images), random_patches(4, seed=1)
    _, detector = fitted(train)

    found = detector.score({"patches": test})

    np.testing.assert_allclose(found.anomaly_maps, written_out(train, test), rtol=2e-4)
    for score, anomaly_map in zip(found.image_scores, found.anomaly_maps, strict=True):
        assert score == gaussian_filter(anomaly_map, 1.0).max()


def test_two_images_by_hand():
    # Features 0 and 2 at one location: mean 1, variance 2, and 2 + 0.01 regularised.
    train = np.array([0, 2], np.float32).reshape(2, 1, 1, 1)
    _, detector = fitted(train)
    found = detector.score({"patches": np.array([4], np.float32).reshape(1, 1, 1, 1)})
    assert found.anomaly_maps[0, 0, 0] == pytest.approx(3 / np.sqrt(2.01))


# One location, channels (1, 2) and (3, 8): mu = (2, 5), and the images lie (-1, -3) and (1, 3) off.
# Sigma = 1 / (2 - 1) * 2 * ((1, 3), (3, 9)) + 0.01 I = ((2.01, 6), (6, 18.01)), of determinant
# 2.01 * 18.01 - 6 * 6 = 0.2001, so that M^2 = (18.01 u^2 - 12 u v + 2.01 v^2) / 0.2001 of an image
# (u, v) off mu.
@pytest.mark.parametrize(
    ("image", "squared"),
    [
        # (1, 0) off: 18.01.
        ((3, 5), 18.01 / 0.2001),
        # (0, 1) off: 2.01.
        ((2, 6), 2.01 / 0.2001),
        # (2, 1) off: 72.04 - 24 + 2.01.
        ((4, 6), 50.05 / 0.2001),
        # (2, 6) off, the way that the images vary: 72.04 - 144 + 72.36.
        ((4, 11), 0.4 / 0.2001),
        # (3, -1) off, at right angles to it, where there is 0.01 alone: 162.09 + 36 + 2.01.
        ((5, 4), 200.1 / 0.2001),
    ],
)
def test_two_channels_by_hand(image, squared):
    train = np.array([(1, 2), (3, 8)], np.float32).reshape(2, 1, 1, 2)
    _, detector = fitted(train)
    found = detector.score({"patches": np.array(image, np.float32).reshape(1, 1, 1, 2)})
    # The whitening is rounded to float32, of a Sigma that is 2000 times as wide one way.
    assert found.anomaly_maps[0, 0, 0] == pytest.approx(np.sqrt(squared), rel=1e-4)
    # Smoothing leaves a map of one location as it is.
    assert found.image_scores[0] == pytest.approx(np.sqrt(squared), rel=1e-4)


@given(st.lists(st.integers(1, 6), max_size=4), st.integers(0, 3))
def test_no_partition_of_the_images_changes_the_statistics(sizes, seed):
    patches = random_patches(13, seed=seed)
    whole, _ = fitted(patches)
    cut, _ = fitted(patches, *sizes)
    for name, array in whole.state.items():
        np.testing.assert_allclose(cut.state[name], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory_budget", [1, 3000, 10_000])
def test_locations_that_take_turns_give_the_same_bits(memory_budget):
    patches = random_patches(9)
    whole, _ = fitted(patches, 4)
    turns, _ = fitted(patches, 4, memory_budget=memory_budget)
    for name, array in whole.state.items():
        np.testing.assert_array_equal(turns.state[name], array)


@pytest.mark.parametrize("dim", [5, 100, 550])
def test_an_image_scores_the_same_to_the_bit_in_any_company(dim, monkeypatch):
    _, detector = fitted(random_patches(20, dim=dim))
    test = random_patches(37, seed=1, dim=dim)
    together = detector.score({"patches": test}).anomaly_maps
    # On any number of threads, too, of ours and of the BLAS.
    for threads in (1, 3):
        monkeypatch.setattr(padim.torch, "get_num_threads", lambda threads=threads: threads)
        with threadpool_limits(threads, "blas"):
            again = detector.score({"patches": test}).anomaly_maps
        np.testing.assert_array_equal(again, together)
    for image in (0, 1, 15, 16, 36):
        alone = detector.score({"patches": test[image, None]}).anomaly_maps[0]
        np.testing.assert_array_equal(alone, together[image])
    backwards = detector.score({"patches": test[::-1].copy()}).anomaly_maps
    np.testing.assert_array_equal(backwards[::-1], together)


@pytest.mark.parametrize("images", [3, 8, 60])
def test_a_training_image_is_measured_as_if_it_had_not_been_there(images):
    train = random_patches(images)
    # Without regularisation to speak of the formula is exact, where there are images enough.
    dim = train.shape[-1]
    regularisation = 1e-6 if images > dim + 1 else 1.0
    found, detector = fitted(train, regularisation=regularisation)
    own = detector.score({"patches": train[2, None]}, own_part(found, 2))
    rest = np.delete(train, 2, axis=0)
    exact = written_out(rest, train[2, None], regularisation)
    tolerance = 2e-3 if images > dim + 1 else 0.5
    np.testing.assert_allclose(own.anomaly_maps, exact, rtol=tolerance)
    assert (own.anomaly_maps > detector.score({"patches": train[2, None]}).anomaly_maps).all()


def test_two_images_know_no_spread_without_one_of_them():
    distances = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(without_itself(distances, 2), distances)


def test_rounding_cannot_make_a_distance_of_nothing():
    # M^2 N / (N - 1)^2 is below 1 but for rounding.
    distances = np.array([[np.float32(np.sqrt(81 / 10)) * np.float32(1 + 1e-6)]])
    assert np.isfinite(without_itself(distances, 10)).all()


def test_channels_are_a_fixed_choice():
    # A model that was fitted with other channels than it is scored with would be useless: this is
    # the choice for ever.
    assert chosen_channels(12, 4, 0).tolist() == [0, 4, 6, 10]
    assert len(set(chosen_channels(448, 100, 0))) == 100
    assert chosen_channels(448, 100, 0).tolist() != chosen_channels(448, 100, 1).tolist()
    assert chosen_channels(5, 100, 0).tolist() == [0, 1, 2, 3, 4]


def test_the_embedding_is_the_chosen_channels_repeated_to_the_finest_grid():
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, channels, side, side, generator=generator)
        for channels, side in ((4, 8), (6, 4), (3, 2))
    ]
    embedded = PaDiM(dimensions=7).embed(maps, seed=3)["patches"].numpy()
    chosen = chosen_channels(13, 7, 3)
    whole = np.concatenate(
        [np.repeat(np.repeat(m.numpy(), 8 // m.shape[2], 2), 8 // m.shape[2], 3) for m in maps], 1
    )
    np.testing.assert_array_equal(embedded, whole[:, chosen].transpose(0, 2, 3, 1))


def test_a_wrong_setting_is_named():
    with pytest.raises(ConfigError, match=r"method\.regularisation"):
        build("padim", {"regularisation": 0})
