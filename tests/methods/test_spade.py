"""SPADE against what its formulas say, written out."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.index.exact import ExactSearch
from pipeline.maths.resampling import bilinear_matrix
from pipeline.methods.contract import Model
from pipeline.methods.spade import SPADE, joined
from tests.methods.corpus import FakeCorpus, split

GRIDS = {"layer0": (4, 4, 6), "layer1": (2, 2, 9)}


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = {
        name: rng.standard_normal((count, *shape)).astype(np.float32)
        for name, shape in GRIDS.items()
    }
    return {"pooled": rng.standard_normal((count, 8)).astype(np.float32)} | maps


@dataclass(frozen=True)
class FakeGallery:
    fragments: list

    def of_image(self, number):
        for fragment in self.fragments:
            count = len(fragment["layer0"])
            if number < count:
                return {name: array[number] for name, array in fragment.items()}
            number -= count
        raise IndexError(number)


def fitted(method: SPADE, train: dict[str, np.ndarray], *sizes: int) -> Model:
    corpus = FakeCorpus(split(train, *sizes))
    found = method.fit(corpus, seed=0)
    gallery = None
    if found.gallery is not None:
        gallery = FakeGallery([found.gallery(fragment) for fragment in corpus.fragments])
    search = ExactSearch.over(found.bank.rows)
    return method.prepare(Model(found.state, search, gallery))


def retrieved(train, image, count):
    distances = np.linalg.norm(train["pooled"].astype(np.float64) - image["pooled"], axis=1)
    order = np.argsort(distances, kind="stable")[:count]
    return order, (distances[order] ** 2).mean()


def oracle(train, image, chosen, kappa, *, same_location=False):
    """Return the map by loops over pixels, in float64."""
    layers = []
    for name, (rows, columns, _) in GRIDS.items():
        gallery = train[name][chosen].astype(np.float64)
        grid = np.empty((rows, columns))
        for y in range(rows):
            for x in range(columns):
                among = (
                    gallery[:, y, x] if same_location else gallery.reshape(-1, gallery.shape[-1])
                )
                distances = np.sort(np.linalg.norm(among - image[name][y, x], axis=1))
                grid[y, x] = distances[:kappa].mean()
        layers.append(bilinear_matrix(4, rows) @ grid @ bilinear_matrix(4, columns).T)
    return np.mean(layers, axis=0)


def one(embeddings, number):
    return {name: array[number] for name, array in embeddings.items()}


@pytest.mark.parametrize("gallery", ["neighbours", "same_location"])
@pytest.mark.parametrize(("count", "kappa"), [(1, 1), (4, 1), (4, 3), (50, 2)])
def test_scores_and_maps_are_those_of_the_paper(gallery, count, kappa):
    train, test = images(9), images(5, seed=1)
    method = SPADE(retrieved=count, neighbours=kappa, gallery=gallery, gallery_dtype="float32")
    found = method.score(test, fitted(method, train, 4))
    for number in range(5):
        image = one(test, number)
        chosen, squared = retrieved(train, image, count)
        wanted = oracle(train, image, chosen, kappa, same_location=gallery == "same_location")
        assert found.image_scores[number] == pytest.approx(squared, rel=1e-6)
        np.testing.assert_allclose(found.anomaly_maps[number], wanted, rtol=1e-5)


def test_a_pixel_like_the_last_of_the_last_image_scores_nothing():
    """An implementation in use drops the last rows of each gallery."""
    train, test = images(9), images(1, seed=1)
    for name in GRIDS:
        test[name][0] = train[name][8, -1, -1]
    method = SPADE(gallery_dtype="float32")
    assert method.score(test, fitted(method, train)).anomaly_maps.max() == 0


def test_a_coreset_of_all_pixels_is_the_gallery_of_all_images():
    train, test = images(5), images(3, seed=1)
    whole = SPADE(gallery="coreset", coreset_fraction=1.0)
    other = SPADE(retrieved=5, gallery_dtype="float32")
    one_way = whole.score(test, fitted(whole, train, 2))
    np.testing.assert_array_equal(
        one_way.anomaly_maps, other.score(test, fitted(other, train)).anomaly_maps
    )
    smaller = SPADE(gallery="coreset", coreset_fraction=0.2)
    assert (
        smaller.score(test, fitted(smaller, train)).anomaly_maps >= one_way.anomaly_maps - 1e-6
    ).all()


def test_a_training_image_does_not_find_itself():
    train = images(6)
    method = SPADE(retrieved=2, gallery_dtype="float32")
    model = fitted(method, train)
    image = one(train, 3)
    own = {name: array[None] for name, array in image.items()}
    assert method.score(own, model).anomaly_maps.max() == 0
    found = method.score(own, model, ignore=np.array([3]))
    others = {name: np.delete(array, 3, axis=0) for name, array in train.items()}
    chosen, squared = retrieved(others, image, 2)
    assert found.image_scores[0] == pytest.approx(squared, rel=1e-6)
    np.testing.assert_allclose(found.anomaly_maps[0], oracle(others, image, chosen, 1), rtol=1e-5)


def test_half_floats_move_distances_by_a_thousandth():
    train, test = images(9), images(4, seed=1)
    full, half = (SPADE(gallery_dtype=dtype) for dtype in ("float32", "float16"))
    np.testing.assert_allclose(
        half.score(test, fitted(half, train)).anomaly_maps,
        full.score(test, fitted(full, train)).anomaly_maps,
        rtol=2e-3,
    )


@settings(max_examples=10)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_an_images_bits_do_not_depend_on_the_others(order, cut):
    train, test = images(9), images(6, seed=1)
    method = SPADE(retrieved=3)
    model = fitted(method, train, 4)
    whole = method.score(test, model)
    moved = {name: array[order] for name, array in test.items()}
    for part in (slice(0, cut), slice(cut, 6)):
        found = method.score({name: array[part] for name, array in moved.items()}, model)
        np.testing.assert_array_equal(found.image_scores, whole.image_scores[order][part])
        np.testing.assert_array_equal(found.anomaly_maps, whole.anomaly_maps[order][part])


def test_the_mean_over_layers_is_on_the_finest_grid():
    fine = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(joined([fine, np.full((2, 2), 3, np.float32)]), (fine + 3) / 2)


def test_cost_and_size_are_told():
    corpus = FakeCorpus(split(images(9), 4))
    facts = SPADE(retrieved=5).fit(corpus, seed=0).facts
    numbers = 16 * 6 + 4 * 9
    assert facts["gallery_bytes"] == 9 * numbers * 2
    assert facts["gflop_per_image"] == pytest.approx(2 * 5 * (16**2 * 6 + 4**2 * 9) / 1e9)
    assert "gflop_per_image" not in SPADE(gallery="same_location").fit(corpus, seed=0).facts


def test_embeddings_are_maps_and_the_pooled_last_layer():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    found = SPADE().embed(maps, seed=0)
    assert found["layer0"].shape == (2, 4, 4, 3)
    assert torch.equal(found["pooled"], maps[1].mean(dim=(2, 3)))
    with pytest.raises(ConfigError, match="name two at least"):
        SPADE().embed(maps[:1], seed=0)
