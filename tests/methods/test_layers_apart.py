"""PatchCore with a bank a layer, against brute force in each layer and the join by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.loading import LoadedGroup
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart
from patchlake.pipeline.methods.shared.contract import EarlierModel, FitResult
from tests.methods.corpus import FakeCorpus, FakeGroup, split
from tests.methods.test_patchcore import brute_force_near

# Of each layer its grid and dimensions: a bank that is wider than others is not the first one.
LAYERS = {"layer0": (4, 6, 3), "layer1": (2, 3, 5)}


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(count, *shape)).astype(np.float32) for name, shape in LAYERS.items()
    }


def taken(embeddings: dict[str, np.ndarray], which: object) -> dict[str, np.ndarray]:
    return {name: array[which] for name, array in embeddings.items()}


def method_of(**options) -> PatchCore:
    return PatchCore(**({"coreset_fraction": 0.2, "layers_apart": True} | options))


def fitted(method: PatchCore, embeddings, *sizes: int) -> FitResult:
    return method.fit(FakeCorpus(split(embeddings, *sizes)), seed=3)


def banks_of(found: FitResult) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return rows and origin of each layer's bank, cut out by the facts of each."""
    begin, banks = 0, {}
    for name, (_, _, dim) in LAYERS.items():
        end = begin + int(found.facts[f"{name}.bank_rows"])
        banks[name] = found.bank.rows[begin:end, :dim], found.bank.origin[begin:end]
        # What is beside a narrower row is zero.
        assert not found.bank.rows[begin:end, dim:].any()
        begin = end
    assert begin == len(found.bank.rows) == found.facts["bank_rows"]
    return banks


def slow_maps(embeddings, banks, *, radius=None, cosine=False) -> np.ndarray:
    """Return the joined maps: every patch against every row, resized by torch, and the mean."""
    layers = []
    for name, (rows, origin) in banks.items():
        near = max(LAYERS[name][:2]) if radius is None else radius
        distances = brute_force_near(embeddings[name], rows, origin[:, 1:], near)
        scaled = distances**2 / 2 if cosine else distances / LAYERS[name][2]
        maps = torch.from_numpy(scaled)[:, None].double()
        layers.append(functional.interpolate(maps, LAYERS["layer0"][:2], mode="bilinear")[:, 0])
    return torch.stack(layers).mean(dim=0).numpy()


def scored(method, found, embeddings, own=None):
    return method.prepare(FakeGroup(found)).score(embeddings, own)


@pytest.mark.parametrize("radius", [None, 0, 1, 9])
@pytest.mark.parametrize("coreset", ["driver", "partitioned"])
def test_maps_are_the_mean_of_brute_force_in_each_layer(radius, coreset):
    train, test = images(7), images(3, seed=1)
    method = method_of(position_radius=radius, coreset=coreset)
    found = fitted(method, train, 3)
    for name, (rows, (image, y, x)) in (
        (name, (rows, origin.T)) for name, (rows, origin) in banks_of(found).items()
    ):
        np.testing.assert_array_equal(rows, train[name][image, y, x])
    scores = scored(method, found, test)
    expected = slow_maps(test, banks_of(found), radius=radius)
    np.testing.assert_allclose(scores.anomaly_maps, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores.image_scores, scores.anomaly_maps.max(axis=(1, 2)))


def test_cosine_distances_are_joined_as_they_are():
    unit = {
        name: array / np.linalg.norm(array, axis=-1, keepdims=True)
        for name, array in images(7).items()
    }
    method = method_of(distance="cosine", image_score="mean_top", top_fraction=0.125)
    found = fitted(method, taken(unit, slice(5)))
    test = taken(unit, slice(5, None))
    scores = scored(method, found, test)
    expected = slow_maps(test, banks_of(found), cosine=True)
    np.testing.assert_allclose(scores.anomaly_maps, expected, rtol=1e-5)
    # An eighth of 24 patches.
    largest = np.sort(scores.anomaly_maps.reshape(2, -1), axis=1)[:, -3:]
    np.testing.assert_allclose(scores.image_scores, largest.mean(axis=1), rtol=1e-6)


def test_each_layer_has_the_bank_that_it_would_have_alone():
    train = images(9)
    found = fitted(method_of(), train, 4)
    for name, (rows, origin) in banks_of(found).items():
        alone = fitted(method_of(layers_apart=False), {"patches": train[name]})
        np.testing.assert_array_equal(rows, alone.bank.rows)
        np.testing.assert_array_equal(origin, alone.bank.origin)
        for fact, value in alone.facts.items():
            assert found.facts[f"{name}.{fact}"] == value
    assert found.facts["layers_apart"] == 2


def test_one_layer_apart_is_that_layer_over_its_dimensions():
    train, test = images(7)["layer0"], images(3, seed=1)["layer0"]
    apart, plain = method_of(), method_of(layers_apart=False)
    found = scored(apart, fitted(apart, {"layer0": train}), {"layer0": test})
    expected = scored(plain, fitted(plain, {"patches": train}), {"patches": test})
    np.testing.assert_allclose(found.anomaly_maps, expected.anomaly_maps / 3, rtol=1e-6)


@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("leaving", [[2], [0, 4, 5]])
def test_a_training_image_scores_as_if_its_rows_were_not_there(radius, leaving):
    train = images(8)
    method = method_of(position_radius=radius)
    found = fitted(method, train)
    own = OwnPart.of(leaving, found.bank, together=len(leaving) > 1)
    kept = {
        name: (rows[~np.isin(origin[:, 0], leaving)], origin[~np.isin(origin[:, 0], leaving)])
        for name, (rows, origin) in banks_of(found).items()
    }
    scores = scored(method, found, taken(train, leaving), own)
    expected = slow_maps(taken(train, leaving), kept, radius=radius)
    np.testing.assert_allclose(scores.anomaly_maps, expected, rtol=1e-5)


@settings(max_examples=15)
@given(first=st.integers(2, 6), fraction=st.floats(0.05, 0.6), radius=st.sampled_from([None, 0, 1]))
def test_images_that_join_and_leave_do_so_in_each_layer(first, fraction, radius):
    train = images(7)
    method = method_of(coreset_fraction=fraction, position_radius=radius)
    alone = method_of(coreset_fraction=fraction, position_radius=radius, layers_apart=False)

    def steps(method, embeddings):
        begun = method.fit(FakeCorpus([taken(embeddings, slice(first))]), seed=3)
        more = FakeCorpus([taken(embeddings, slice(first, None))])
        joined = method.update(_earlier(begun, first), more, seed=3)
        gone = np.array([0, first])
        try:
            return joined, method.withdraw(_earlier(joined, 7), gone, None, seed=3)
        except ConfigError:
            return joined, None

    of_layers = {name: steps(alone, {"patches": train[name]}) for name in LAYERS}
    for step, found in enumerate(steps(method, train)):
        expected = [of_layers[name][step] for name in LAYERS]
        if found is None:
            assert None in expected
            continue
        for (name, (rows, origin)), one in zip(banks_of(found).items(), expected, strict=True):
            np.testing.assert_array_equal(rows, one.bank.rows)
            np.testing.assert_array_equal(origin, one.bank.origin)
            assert {f: found.facts[f"{name}.{f}"] for f in one.facts} == one.facts
        np.testing.assert_allclose(
            scored(method, found, train).anomaly_maps,
            slow_maps(train, banks_of(found), radius=radius),
            rtol=1e-5,
            atol=1e-7,
        )


def test_the_cut_into_fragments_changes_nothing():
    train = images(9)
    whole, cut = (fitted(method_of(), train, *sizes) for sizes in ((), (2, 3, 1)))
    np.testing.assert_array_equal(cut.bank.rows, whole.bank.rows)
    np.testing.assert_array_equal(cut.state["sizes"], whole.state["sizes"])
    assert cut.facts == whole.facts


def test_an_image_scores_the_same_among_any_others():
    method = method_of(position_radius=1)
    detector = method.prepare(FakeGroup(fitted(method, images(9))))
    test = images(5, seed=1)
    batch = detector.score(test)
    for number in range(5):
        alone = detector.score(taken(test, [number]))
        assert batch.image_scores[number] == alone.image_scores[0]
        np.testing.assert_array_equal(batch.anomaly_maps[number], alone.anomaly_maps[0])
    none = detector.score(taken(test, []))
    assert (none.image_scores.shape, none.anomaly_maps.shape) == ((0,), (0, 4, 6))


@pytest.mark.parametrize("radius", [None, 1])
def test_rows_that_workers_of_a_node_have_in_common_are_only_read(radius):
    method = method_of(position_radius=radius)
    found, test = fitted(method, images(9)), images(3, seed=1)
    expected = scored(method, found, test)
    found.bank.rows.setflags(write=False)
    shared = LoadedGroup(found.state, ExactSearch.over(found.bank.rows), None, 1)
    np.testing.assert_array_equal(
        method.prepare(shared).score(test).anomaly_maps, expected.anomaly_maps
    )


def test_an_image_with_all_rows_of_one_layer_cannot_be_scored_as_new():
    """Which the calibration asks the bank: of one layer there is nothing else to compare with."""
    origin = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0]], np.int64)
    rows = np.zeros((3, 2), np.float32)
    stack = MemoryBank(rows, origin=origin, sizes=(2, 1))
    assert [stack.has_others(OwnPart.of([i], stack).rows) for i in (0, 1, 2)] == [True, False, True]
    plain = MemoryBank(rows, origin=origin)
    assert [plain.has_others(OwnPart.of([i], plain).rows) for i in (0, 1)] == [True, True]
    assert not plain.has_others(OwnPart.of([0, 1], plain).rows)


def test_embeddings_are_of_each_layer_on_its_own_grid():
    fine, coarse = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 2, 3)
    found = method_of(neighbourhood=1).embed([fine, coarse], seed=0)
    assert {name: tuple(array.shape) for name, array in found.items()} == {
        "layer0": (2, 4, 6, 3),
        "layer1": (2, 2, 3, 5),
    }
    torch.testing.assert_close(found["layer1"], coarse.permute(0, 2, 3, 1))
    pooled = method_of(neighbourhood=3, distance="cosine").embed([fine, coarse], seed=0)["layer0"]
    mean = functional.avg_pool2d(fine, 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, functional.normalize(mean, dim=-1))


def test_progress_is_of_all_layers():
    told = []
    fine = images(300)["layer0"]
    corpus = FakeCorpus(split({"layer0": fine, "layer1": fine[..., 1:]}, 4))
    method_of(coreset_fraction=0.5, coreset="distributed").fit(
        corpus, seed=0, progress=lambda *shares: told.append(shares)
    )
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < shares[-1] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "official"}, "the official embedding joins layers"),
        ({"image_score": "reweighted"}, r"Eq\. 7 is of one memory bank"),
        ({"layers_apart": "yes"}, r"'method\.layers_apart' is 'yes'; give true or false"),
        ({"layers_apart": 1}, r"'method\.layers_apart' is 1; give true or false"),
        ({"neighbourhood": True}, r"'method\.neighbourhood' is true; give a number or a name"),
    ],
)
def test_what_does_not_go_with_banks_of_layers_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build("patchcore", {"layers_apart": True} | options)


def test_a_model_of_other_layers_is_named():
    method = method_of()
    found = fitted(method, images(4))
    with pytest.raises(ValueError, match="images have 1 layers, the banks 2"):
        scored(method, found, {"layer0": images(1)["layer0"]})
    damaged = FitResult({}, {"sizes": found.state["sizes"] - 1}, found.bank)
    with pytest.raises(ValueError, match=r"the bank has \d+ rows of 5 dimensions, its layers have"):
        method.prepare(FakeGroup(damaged))


def _earlier(found: FitResult, count: int) -> EarlierModel:
    # As it is read from a model: the rows are one bank there.
    bank = MemoryBank(found.bank.rows, origin=found.bank.origin)
    return EarlierModel(count, found.facts, found.state, found.statistics, bank)
