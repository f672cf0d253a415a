"""SPADE against what its formulas say, written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.resampling import bilinear_matrix
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.correspondence import order_by_overlap
from patchlake.pipeline.methods.shared.maps import mean_on_finest_grid
from patchlake.pipeline.methods.spade import SPADE, SPADEDetector
from tests.methods.corpus import FakeCorpus, FakeGroup, split

GRIDS = {"layer0": (4, 4, 6), "layer1": (2, 2, 9)}


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = {
        name: rng.standard_normal((count, *shape)).astype(np.float32)
        for name, shape in GRIDS.items()
    }
    return {"pooled": rng.standard_normal((count, 8)).astype(np.float32)} | maps


def fitted(method: SPADE, train: dict[str, np.ndarray], *sizes: int) -> SPADEDetector:
    corpus = FakeCorpus(split(train, *sizes))
    found = method.fit(corpus, seed=0)
    keep = found.to_gallery
    kept = [] if keep is None else [keep(fragment) for fragment in corpus.fragments]
    return method.prepare(FakeGroup(found, kept))


def fitted_score(method, train, test):
    return fitted(method, train).score(test)


def own_part(image: int) -> OwnPart:
    """Of a training image: its row of the bank has its number."""
    return OwnPart(np.array([image]), np.array([image]))


def retrieved(train, image, count):
    distances = np.linalg.norm(train["pooled"].astype(np.float64) - image["pooled"], axis=1)
    order = np.argsort(distances, kind="stable")[:count]
    return order, (distances[order] ** 2).mean()


def oracle(train, image, chosen, kappa, *, same_location=False, radius=0):
    """Return the map by loops over pixels, in float64."""
    layers = []
    for name, (rows, columns, _) in GRIDS.items():
        gallery = train[name][chosen].astype(np.float64)
        grid = np.empty((rows, columns))
        for y in range(rows):
            for x in range(columns):
                near = gallery
                if same_location:
                    rows_, columns_ = (slice(max(0, at - radius), at + radius + 1) for at in (y, x))
                    near = gallery[:, rows_, columns_]
                among = near.reshape(-1, gallery.shape[-1])
                distances = np.sort(np.linalg.norm(among - image[name][y, x], axis=1))
                grid[y, x] = distances[:kappa].mean()
        layers.append(bilinear_matrix(4, rows) @ grid @ bilinear_matrix(4, columns).T)
    return np.mean(layers, axis=0)


def one(embeddings, number):
    return {name: array[number] for name, array in embeddings.items()}


def test_two_images_by_hand():
    # One layer of two pixels and one channel.
    train = {
        "pooled": np.array([[0], [10]], np.float32),
        "layer0": np.array([[1, 5], [2, 9]], np.float32).reshape(2, 1, 2, 1),
    }
    test = {
        "pooled": np.array([[3]], np.float32),
        "layer0": np.array([9, 2], np.float32).reshape(1, 1, 2, 1),
    }
    # Nearest image: 0, at 3. Its pixels are 1 and 5: 9 is 4 from 5, 2 is 1 from 1.
    found = fitted_score(SPADE(retrieved=1), train, test)
    assert (found.image_scores.tolist(), found.anomaly_maps.tolist()) == ([9], [[[4, 1]]])
    # At its own place 9 meets 1, and 2 meets 5.
    found = fitted_score(SPADE(retrieved=1, gallery="same_location"), train, test)
    assert found.anomaly_maps.tolist() == [[[8, 3]]]
    # With both images, 3 and 7 away, there are a 9 and a 2.
    found = fitted_score(SPADE(retrieved=2), train, test)
    assert (found.image_scores.tolist(), found.anomaly_maps.tolist()) == ([29], [[[0, 0]]])
    # The two nearest of 1, 5, 2, 9: 0 and 4 from 9, 0 and 1 from 2.
    found = fitted_score(SPADE(retrieved=2, neighbours=2), train, test)
    assert found.anomaly_maps.tolist() == [[[2, 0.5]]]


@pytest.mark.parametrize("gallery", ["neighbours", "same_location"])
@pytest.mark.parametrize(("count", "kappa"), [(1, 1), (4, 1), (4, 3), (50, 2)])
def test_scores_and_maps_are_those_of_the_paper(gallery, count, kappa):
    train, test = images(9), images(5, seed=1)
    method = SPADE(retrieved=count, neighbours=kappa, gallery=gallery, gallery_dtype="float32")
    found = fitted(method, train, 4).score(test)
    for number in range(5):
        image = one(test, number)
        chosen, squared = retrieved(train, image, count)
        wanted = oracle(train, image, chosen, kappa, same_location=gallery == "same_location")
        assert found.image_scores[number] == pytest.approx(squared, rel=1e-6)
        np.testing.assert_allclose(found.anomaly_maps[number], wanted, rtol=1e-5)


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize(("count", "kappa"), [(1, 1), (4, 3)])
def test_the_same_location_may_be_some_pixels_away(radius, count, kappa):
    train, test = images(9), images(5, seed=1)
    options = {"retrieved": count, "neighbours": kappa, "gallery_dtype": "float32"}
    method = SPADE(gallery="same_location", location_radius=radius, **options)
    found = fitted(method, train, 4).score(test)
    for number in range(5):
        image = one(test, number)
        chosen, _ = retrieved(train, image, count)
        wanted = oracle(train, image, chosen, kappa, same_location=True, radius=radius)
        np.testing.assert_allclose(found.anomaly_maps[number], wanted, rtol=1e-5)
    anywhere = fitted(SPADE(**options), train, 4).score(test)
    if radius == 9:
        np.testing.assert_array_equal(found.anomaly_maps, anywhere.anomaly_maps)
    else:
        assert (found.anomaly_maps >= anywhere.anomaly_maps).all()


def of_length_1(embeddings):
    return {
        name: array / np.linalg.norm(array, axis=-1, keepdims=True)
        for name, array in embeddings.items()
    }


@pytest.mark.parametrize("image_score", ["retrieved", "mean_top"])
def test_by_cosine_maps_and_scores_are_those_of_rad(image_score):
    """As RAD has it: 1 - cos to the most similar patch, the mean of the layers and of the top."""
    train, test = of_length_1(images(9)), of_length_1(images(5, seed=1))
    method = SPADE(
        retrieved=4,
        gallery="same_location",
        location_radius=1,
        gallery_dtype="float32",
        distance="cosine",
        image_score=image_score,
        top_fraction=0.2,
    )
    found = fitted(method, train, 4).score(test)
    for number in range(5):
        likeness = train["pooled"].astype(np.float64) @ test["pooled"][number]
        chosen = np.argsort(-likeness)[:4]
        layers = []
        for name, (rows, columns, _) in GRIDS.items():
            grid = np.empty((rows, columns))
            for y, x in np.ndindex(rows, columns):
                near = train[name][chosen, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                grid[y, x] = 1 - (near.astype(np.float64) @ test[name][number, y, x]).max()
            layers.append(bilinear_matrix(4, rows) @ grid @ bilinear_matrix(4, columns).T)
        wanted = np.mean(layers, axis=0)
        np.testing.assert_allclose(found.anomaly_maps[number], wanted, rtol=1e-4, atol=1e-6)
        # A fifth of 16.
        largest = np.sort(wanted.ravel())[-3:].mean()
        expected = largest if image_score == "mean_top" else 1 - likeness[chosen].mean()
        assert found.image_scores[number] == pytest.approx(expected, rel=1e-4)


def test_by_cosine_features_have_length_1():
    maps = [torch.randn(2, 6, 4, 4), torch.randn(2, 9, 2, 2)]
    found = SPADE(distance="cosine").embed(maps, seed=0)
    assert set(found) == {"layer0", "layer1", "pooled"}
    for array in found.values():
        torch.testing.assert_close(array.norm(dim=-1), torch.ones(array.shape[:-1]))
    mean = maps[1].mean(dim=(2, 3))
    torch.testing.assert_close(found["pooled"], torch.nn.functional.normalize(mean, dim=-1))


def test_a_radius_is_of_the_same_location():
    with pytest.raises(ConfigError, match=r"location_radius=1 is of gallery=same_location"):
        build("spade", {"location_radius": 1})


def test_a_pixel_like_the_last_of_the_last_image_scores_nothing():
    """An implementation in use drops the last rows of each gallery."""
    train, test = images(9), images(1, seed=1)
    for name in GRIDS:
        test[name][0] = train[name][8, -1, -1]
    method = SPADE(gallery_dtype="float32")
    assert fitted(method, train).score(test).anomaly_maps.max() == 0


def test_a_coreset_of_all_pixels_is_the_gallery_of_all_images():
    train, test = images(5), images(3, seed=1)
    whole = SPADE(gallery="coreset", coreset_fraction=1.0)
    other = SPADE(retrieved=5, gallery_dtype="float32")
    one_way = fitted(whole, train, 2).score(test)
    np.testing.assert_array_equal(
        one_way.anomaly_maps, fitted(other, train).score(test).anomaly_maps
    )
    smaller = SPADE(gallery="coreset", coreset_fraction=0.2)
    assert (fitted(smaller, train).score(test).anomaly_maps >= one_way.anomaly_maps - 1e-6).all()


def test_a_training_image_does_not_find_itself():
    train = images(6)
    method = SPADE(retrieved=2, gallery_dtype="float32")
    detector = fitted(method, train)
    image = one(train, 3)
    own = {name: array[None] for name, array in image.items()}
    assert detector.score(own).anomaly_maps.max() == 0
    found = detector.score(own, own_part(3))
    others = {name: np.delete(array, 3, axis=0) for name, array in train.items()}
    chosen, squared = retrieved(others, image, 2)
    assert found.image_scores[0] == pytest.approx(squared, rel=1e-6)
    np.testing.assert_allclose(found.anomaly_maps[0], oracle(others, image, chosen, 1), rtol=1e-5)


@pytest.mark.parametrize("gallery", ["neighbours", "same_location", "coreset"])
def test_a_training_image_scores_as_if_it_had_not_been_there(gallery):
    train = images(6)
    method = SPADE(gallery=gallery, coreset_fraction=1.0, gallery_dtype="float32")
    others = {name: np.delete(array, 3, axis=0) for name, array in train.items()}
    own = {name: array[3, None] for name, array in train.items()}
    found = fitted(method, train, 2).score(own, own_part(3))
    wanted = fitted(method, others, 2).score(own)
    np.testing.assert_array_equal(found.image_scores, wanted.image_scores)
    np.testing.assert_array_equal(found.anomaly_maps, wanted.anomaly_maps)


def test_a_coreset_of_one_image_is_all_that_it_can_be_compared_with():
    train = images(2)
    method = SPADE(gallery="coreset", coreset_fraction=1e-9)
    own = {name: array[0, None] for name, array in train.items()}
    found = fitted(method, train).score(own, own_part(0))
    assert np.isfinite(found.anomaly_maps).all()


def test_a_coreset_is_capped():
    found = SPADE(gallery="coreset", coreset_fraction=1.0, max_bank_rows=7).fit(
        FakeCorpus(split(images(5), 2)), seed=0
    )
    assert [len(found.state[name]) for name in GRIDS] == [7, 7]


def test_half_floats_move_distances_by_a_thousandth():
    train, test = images(9), images(4, seed=1)
    full, half = (SPADE(gallery_dtype=dtype) for dtype in ("float32", "float16"))
    np.testing.assert_allclose(
        fitted(half, train).score(test).anomaly_maps,
        fitted(full, train).score(test).anomaly_maps,
        rtol=2e-3,
    )


@settings(max_examples=10)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_an_images_bits_do_not_depend_on_the_others(order, cut):
    train, test = images(9), images(6, seed=1)
    method = SPADE(retrieved=3)
    detector = fitted(method, train, 4)
    whole = detector.score(test)
    moved = {name: array[order] for name, array in test.items()}
    for part in (slice(0, cut), slice(cut, 6)):
        found = detector.score({name: array[part] for name, array in moved.items()})
        np.testing.assert_array_equal(found.image_scores, whole.image_scores[order][part])
        np.testing.assert_array_equal(found.anomaly_maps, whole.anomaly_maps[order][part])


def test_the_mean_over_layers_is_on_the_finest_grid():
    fine = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(
        mean_on_finest_grid([fine, np.full((2, 2), 3, np.float32)]), (fine + 3) / 2
    )


def test_cost_and_size_are_told():
    corpus = FakeCorpus(split(images(9), 4))
    facts = SPADE(retrieved=5).fit(corpus, seed=0).facts
    numbers = 16 * 6 + 4 * 9
    assert facts["gallery_bytes"] == 9 * numbers * 2
    assert facts["gflop_per_image"] == pytest.approx(2 * 5 * (16**2 * 6 + 4**2 * 9) / 1e9)
    # Cheap enough not to be told.
    assert "gflop_per_image" not in SPADE(gallery="same_location").fit(corpus, seed=0).facts
    facts = SPADE(gallery="coreset", coreset_fraction=0.5).fit(corpus, seed=0).facts
    assert facts["gflop_per_image"] == pytest.approx(2 * (16 * 6 * 72 + 4 * 9 * 18) / 1e9)


def test_the_last_layer_is_pooled_and_the_first_ones_are_maps():
    maps = [torch.randn(2, dim, side, side) for dim, side in ((3, 8), (5, 4), (7, 2), (9, 1))]
    found = SPADE().embed(maps, seed=0)
    assert sorted(found) == ["layer0", "layer1", "layer2", "pooled"]
    for number in range(3):
        assert torch.equal(found[f"layer{number}"], maps[number].permute(0, 2, 3, 1))
    assert torch.equal(found["pooled"], maps[3].mean(dim=(2, 3)))


@pytest.mark.parametrize(("count", "pixel_layers"), [(3, 3), (1, 3), (4, 1)])
def test_the_pooled_layer_can_be_a_pixel_layer_too(count, pixel_layers):
    maps = [torch.randn(2, 3, 4, 4) for _ in range(count)]
    found = SPADE(pixel_layers=pixel_layers).embed(maps, seed=0)
    assert len(found) == min(count, pixel_layers) + 1
    assert torch.equal(found["pooled"], maps[-1].mean(dim=(2, 3)))


def test_features_that_half_floats_cannot_hold_are_refused():
    train = images(3)
    train["layer1"][2, 0, 1, 4] = -70_000
    keep = SPADE().fit(FakeCorpus(split(train)), seed=0).to_gallery
    with pytest.raises(ConfigError, match=r"7e\+04 do not fit method\.gallery_dtype=float16"):
        keep(train)
    assert SPADE(gallery_dtype="float32").fit(FakeCorpus(split(train)), seed=0).to_gallery(train)


@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_a_chain_visits_every_image_once(count, k, seed):
    rng = np.random.default_rng(seed)
    retrieved = rng.permuted(np.tile(np.arange(8), (count, 1)), axis=1)[:, :k]
    assert sorted(order_by_overlap(retrieved)) == list(range(count))


def test_a_chain_goes_on_with_the_image_that_shares_most():
    retrieved = np.array([[1, 2, 3], [7, 8, 9], [3, 2, 4], [9, 4, 8]])
    assert order_by_overlap(retrieved) == [0, 2, 3, 1]
