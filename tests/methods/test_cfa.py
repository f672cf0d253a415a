"""CFA on small random features, against dense formulas and torch's own optimiser and gradients."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.cfa import CFA, compressed, held_out, softmin_scores
from patchlake.pipeline.methods.shared.descent import AdamW, Descent, TrainedParameters
from patchlake.pipeline.methods.shared.hyperspheres import (
    Hyperspheres,
    Loss,
    Parameters,
    describe,
    search_among,
)
from tests.methods.corpus import FakeCorpus, FakeGroup, FakeNotes, FakeReader, split

# Channels, rows and columns of the layers; the finest is neither square nor of an even factor.
SHAPES = ((4, 6, 5), (6, 3, 3), (5, 2, 1))
CHANNELS = sum(shape[0] for shape in SHAPES)
LOSS = Loss(attracting=3, repelling=2, nu=1e-3, alpha=0.1)


def random_maps(images, *, seed=0):
    """Feature maps as a backbone gives them: a pattern that all images share, and noise."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(99)
    return [
        torch.tensor(pattern.normal(size=shape) + 0.3 * rng.normal(size=(images, *shape))).float()
        for shape in SHAPES
    ]


def embedded(images, *, seed=0):
    found = CFA().embed(random_maps(images, seed=seed), seed=0)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def drawn(dim=7, *, radius=1e-5, seed=0):
    return Parameters.drawn(CHANNELS, dim, radius, np.random.default_rng(seed))


def plainly_described(maps, weight, bias):
    """The authors' way: all layers to the finest grid, coordinates beside them, 1 x 1."""
    pooled = [functional.avg_pool2d(layer, 3, 1, 1) for layer in maps]
    rows, columns = grid = maps[0].shape[-2:]
    enlarged = [functional.interpolate(layer, grid, mode="bilinear") for layer in pooled]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"
    )
    coordinates = torch.stack([x, y]).to(weight.dtype).expand(len(maps[0]), -1, -1, -1)
    sample = torch.cat([*enlarged, coordinates], dim=1)
    return functional.conv2d(sample, weight[:, :, None, None], bias).flatten(2).transpose(1, 2)


def plain_loss(patches, centres, radius, loss):
    """The equations on all distances, for torch to differentiate."""
    squared = ((patches[:, None] - centres) ** 2).sum(dim=2)
    nearest = squared.topk(loss.attracting + loss.repelling, largest=False).values
    attracting, repelling = nearest[:, : loss.attracting], nearest[:, loss.attracting :]
    outside = (attracting - radius**2).clamp(min=0).mean()
    inside = (radius**2 - repelling - loss.alpha).clamp(min=0).mean()
    return (outside + inside) / loss.nu


def by_layer(maps):
    return [functional.avg_pool2d(layer, 3, 1, 1)[0].permute(1, 2, 0) for layer in maps]


@dataclass(frozen=True)
class InStep:
    """Workers that are threads: each writes its array, all wait, all read."""

    number: int
    count: int
    barrier: threading.Barrier
    slots: dict
    threads: int = 1

    def gather(self, array):
        self.slots[self.number] = array.copy()
        self.barrier.wait(60)
        found = [self.slots[number] for number in range(self.count)]
        self.barrier.wait(60)
        return found


@dataclass(frozen=True)
class ThreadedCorpus(FakeCorpus):
    """A corpus with several workers."""

    workers: int = 2
    asked: list = field(default_factory=list)

    def together(self, work, members):
        self.asked.append(members)
        barrier, slots = threading.Barrier(self.workers), {}
        with ThreadPoolExecutor(self.workers) as pool:
            running = [
                pool.submit(
                    work,
                    InStep(number, self.workers, barrier, slots, self.threads),
                    FakeReader(self.fragments),
                    self.notes,
                )
                for number in range(self.workers)
            ]
            for one in running:
                one.result()
        return self.notes


def fitted(images=10, *sizes, corpus=FakeCorpus, progress=None, embeddings=None, **options):
    """CFA of a few epochs, fitted; options of a corpus are taken out."""
    own = {name: options.pop(name) for name in ("workers", "threads", "notes") if name in options}
    settings = {"epochs": 3, "hard_negatives": 2} | options
    embeddings = embedded(images) if embeddings is None else embeddings
    method = CFA(**settings)
    return method.fit(corpus(split(embeddings, *sizes), **own), seed=0, progress=progress)


def detector_of(found):
    return CFA().prepare(FakeGroup(found))


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found.bank.rows, expected.bank.rows)
    for name, array in expected.state.items():
        np.testing.assert_array_equal(found.state[name], array)
    assert found.facts == expected.facts


# The loss.


def test_the_loss_by_hand():
    # r^2 = 4: the first pair lies inside (1) and outside (5); the second 3 is 0.9 too near.
    squared = np.array([[1.0, 5.0, 3.0, 9.0]])
    loss, by_squared, by_radius = Loss(2, 2, nu=0.5, alpha=0.1)(squared, 2.0)
    assert loss == pytest.approx((1 / 2 + 0.9 / 2) / 0.5)
    np.testing.assert_allclose(by_squared, [[0, 1, -1, 0]])
    assert by_radius == pytest.approx(-4 * 1 + 4 * 1)


def test_with_other_j_than_k_the_farther_neighbours_are_pushed_off():
    # K = 1, J = 2; the authors' slice [J:] would leave out the second.
    loss, by_squared, _ = Loss(1, 2, nu=1.0, alpha=0.0)(np.array([[0.0, 1.0, 2.0]]), 3.0)
    assert loss == pytest.approx((8 + 7) / 2)
    np.testing.assert_allclose(by_squared, [[0, -0.5, -0.5]])


@pytest.mark.parametrize("radius", [1e-5, 1.0, 3.0])
def test_the_gradient_is_that_of_the_dense_loss(radius):
    maps, parameters = random_maps(1), drawn(radius=radius)
    centres = np.random.default_rng(5).normal(size=(20, 7)).astype(np.float32)
    spheres = Hyperspheres.around(centres, LOSS, threads=1)
    loss, gradient = spheres.gradient(by_layer(maps), parameters)

    variables = [
        torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for array in (parameters.weight, parameters.bias, parameters.radius)
    ]
    described = plainly_described([layer.double() for layer in maps], *variables[:2])[0]
    expected = plain_loss(described, torch.from_numpy(centres).double(), variables[2], LOSS)
    expected.backward()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    flat = np.concatenate([variable.grad.numpy().ravel() for variable in variables])
    assert flat[-1] != 0
    np.testing.assert_allclose(gradient, flat, rtol=1e-4, atol=1e-5 * np.abs(flat).max())


def test_the_gradient_is_finite_where_a_patch_is_a_centre():
    maps, parameters = random_maps(1), drawn(radius=0.01)
    tensors = torch.tensor(parameters.weight), torch.tensor(parameters.bias)
    centres = describe(by_layer(maps), *tensors).numpy()
    # One neighbour, itself: at distance 0, where a square root has no derivative.
    spheres = Hyperspheres.around(centres, Loss(1, 1, 1e-3, 0.1), threads=1)
    loss, gradient = spheres.gradient(by_layer(maps), parameters)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_the_search_among_many_centres_is_exact():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 140))
    centres, patches = ((rng.normal(size=(n, 10)) @ mixing).astype(np.float32) for n in (600, 90))
    pruned = search_among(centres, threads=1)
    assert pruned.components == 128
    for found, expected in zip(
        pruned.nearest(patches, 5), ExactSearch.over(centres).nearest(patches, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_parameters_are_one_vector_and_back():
    parameters = drawn()
    again = Parameters.of(parameters.flat(), 7)
    for name, array in vars(parameters).items():
        np.testing.assert_array_equal(getattr(again, name), array)
    limit = 1 / np.sqrt(CHANNELS + 2)
    assert 0.9 * limit < np.abs(parameters.weight).max() <= limit


# The descriptor.


@pytest.mark.parametrize("images", [1, 3])
def test_the_descriptor_is_enlarging_then_a_convolution_with_coordinates(images):
    maps, parameters = random_maps(images), drawn()
    weight, bias = torch.tensor(parameters.weight), torch.tensor(parameters.bias)
    expected = plainly_described(maps, weight, bias)
    embeddings = CFA().embed(maps, seed=0)
    for number in range(images):
        layers = [embeddings[f"layer{layer}"][number] for layer in range(len(SHAPES))]
        found = describe(layers, weight, bias)
        torch.testing.assert_close(found, expected[number], rtol=1e-5, atol=1e-5)


def test_centres_are_the_mean_descriptors_of_all_images_but_those_held_out():
    maps = random_maps(11)
    embeddings = {k: v.numpy() for k, v in CFA().embed(maps, seed=0).items()}
    found = fitted(embeddings=embeddings, epochs=1, held_out_fraction=0.5)
    assert found.unseen.tolist() == [1, 3, 5, 7, 9]
    start = Parameters.drawn(CHANNELS, CHANNELS, 1e-5, np.random.default_rng(0))
    described = plainly_described(maps, torch.tensor(start.weight), torch.tensor(start.bias))
    mean = np.delete(described.numpy(), found.unseen, axis=0).mean(axis=0)
    np.testing.assert_allclose(found.bank.rows, mean, rtol=1e-4, atol=1e-5)


def test_gamma_d_divides_dimensions_and_gamma_c_centres():
    found = fitted(gamma_d=4, gamma_c=4)
    assert found.bank.rows.shape == (30 // 4, CHANNELS // 4)
    assert found.bank.rows.dtype == np.float32


def test_compressed_centres_are_means_of_clusters():
    corners = np.array([[0, 0], [0, 9], [9, 0]], np.float32)
    points = np.concatenate([corners, corners + 1])
    found = compressed(points, 3, seed=0)
    assert sorted(found.tolist()) == sorted((corners + 0.5).tolist())


# The descent.


def test_a_step_is_that_of_torch():
    rng = np.random.default_rng(0)
    start = rng.normal(size=50).astype(np.float32)
    variable = torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.AdamW([variable], lr=1e-2, weight_decay=5e-2, amsgrad=True)
    state = AdamW.start(start)
    # Gradients that shrink: where amsgrad remembers the largest.
    for size in (1, 100, 1, 0.01, 1e-3, 1, 0, 1):
        gradient = (size * rng.normal(size=50)).astype(np.float32)
        variable.grad = torch.tensor(gradient)
        optimiser.step()
        state = state.step(gradient, 1e-2, 5e-2)
        np.testing.assert_allclose(state.flat, variable.detach().numpy(), rtol=2e-6, atol=2e-6)


def descended(sizes, unseen, *, batch=4, epochs=3):
    """Which images each batch of each epoch was of: image n is the number n."""
    images = np.arange(sum(sizes), dtype=np.float32)
    seen = []

    def gradient(image, flat):
        seen.append(int(image["number"]))
        return 0.0, np.zeros_like(flat)

    descent = Descent(epochs, batch, rate=0.1, decay=0.0, seed=0, unseen=np.array(unseen, int))
    corpus = FakeCorpus(split({"number": images}, *sizes[:-1]))
    start = np.zeros(2, np.float32)

    def work(*workplace):
        descent.run(start, gradient, workplace, lambda *_: None)

    corpus.together(work, batch)
    return np.array(seen).reshape(epochs, -1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5), st.data())
def test_an_epoch_takes_each_image_once_and_those_held_out_never(sizes, batch, data):
    total = sum(sizes)
    unseen = data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))
    epochs = descended(sizes, sorted(unseen), batch=batch)
    left = total - len(unseen)
    for seen in epochs:
        assert len(set(seen)) == len(seen) == left - left % min(batch, left)
        assert not unseen & set(seen.tolist())


def test_epochs_have_other_orders():
    epochs = descended([5, 5, 5], [], batch=5)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_loss_falls_and_the_last_epoch_counts():
    notes, told = FakeNotes(), []
    found = fitted(
        epochs=6, learning_rate=0.01, notes=notes, progress=lambda *done: told.append(done)
    )
    trained = TrainedParameters.noted(notes)
    assert told == [(epoch, 6) for epoch in range(1, 7)]
    assert len(trained.losses) == found.facts["epochs"] == 6
    assert found.facts["loss_last"] == trained.losses[-1] < 0.9 * trained.losses[0]
    np.testing.assert_array_equal(Parameters.of(trained.flat, 15).weight, found.state["weight"])


def test_the_radius_is_trained():
    found = fitted()
    assert found.state["radius"] == np.float32(found.facts["radius"]) != np.float32(1e-5)


# 5 workers are more than images in a batch.
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_no_number_of_workers_changes_a_bit(workers):
    found = fitted(14, 6, corpus=ThreadedCorpus, workers=workers)
    assert_same_bits(found, fitted(14, 6))


def test_no_more_workers_are_asked_for_than_a_batch_has_images():
    asked = []
    corpus = ThreadedCorpus(split(embedded(10)), workers=1, asked=asked)
    CFA(epochs=1, training_batch=3).fit(corpus, seed=0)
    assert asked == [3]


def test_threads_change_no_bit():
    assert_same_bits(fitted(threads=3), fitted())


class DyingError(Exception):
    """What ends a process between two epochs."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_training_that_was_interrupted_goes_on_to_the_same_bits(after):
    def interrupt(done, _):
        if done == after:
            raise DyingError

    notes, told = FakeNotes(), []
    with pytest.raises(DyingError):
        fitted(14, 6, notes=notes, progress=interrupt)
    again = fitted(14, 6, notes=notes, progress=lambda done, _: told.append(done))
    assert told == list(range(after + 1, 4))
    assert_same_bits(again, fitted(14, 6))


@pytest.mark.parametrize("images", [1, 2, 3])
def test_fewer_images_than_a_batch_are_one(images):
    found = fitted(images)
    assert found.unseen is None
    assert found.facts["loss_last"] >= 0


# What is left out.


def test_images_held_out_are_evenly_spread():
    assert held_out(50, 0.1).tolist() == [5, 15, 25, 35, 45]
    assert held_out(49, 0.1).tolist() == []
    assert len(held_out(100, 0.29)) == 29
    assert len(held_out(6, 0.99)) == 5
    assert held_out(5, 0.99).tolist() == []
    for images in range(1, 60):
        found = held_out(images, 0.5)
        assert len(set(found.tolist())) == len(found) == (images // 2 if images >= 10 else 0)
        assert ((found >= 0) & (found < images)).all()


def test_what_an_image_held_out_looks_like_does_not_matter():
    embeddings = embedded(14)
    strange = {name: array.copy() for name, array in embeddings.items()}
    expected = fitted(embeddings=embeddings, held_out_fraction=0.4)
    assert expected.unseen.tolist() == [1, 4, 7, 9, 12]
    for array in strange.values():
        array[expected.unseen] = np.nan
    assert_same_bits(fitted(embeddings=strange, held_out_fraction=0.4), expected)


# Scores.


def test_a_score_is_the_nearest_distance_times_its_softmin():
    distances = np.array([[1, 2, 3], [5, 5, 5], [0, 1, 1], [1000, 1001, 2000]], np.float32)
    expected = [1 / (1 + np.exp(-1) + np.exp(-2)), 5 / 3, 0, 1000 / (1 + np.exp(-1))]
    np.testing.assert_allclose(softmin_scores(distances), expected, rtol=1e-12)
    assert softmin_scores(distances[:1, :1]).tolist() == [1]


def test_maps_are_softmin_scores_of_the_trained_descriptor():
    found, maps = fitted(), random_maps(3, seed=1)
    test = {name: array.numpy() for name, array in CFA().embed(maps, seed=0).items()}
    scores = detector_of(found).score(test)
    weight, bias = (torch.tensor(found.state[name]) for name in ("weight", "bias"))
    described = plainly_described(maps, weight, bias)
    d = torch.cdist(described.double(), torch.from_numpy(found.bank.rows).double())
    nearest = d.topk(3, largest=False).values
    expected = (functional.softmin(nearest, dim=-1) * nearest)[..., 0].numpy()
    np.testing.assert_allclose(scores.anomaly_maps, expected.reshape(3, 6, 5), rtol=1e-4)
    padded = np.pad(scores.anomaly_maps, ((0, 0), (4, 4), (4, 4)), mode="symmetric")
    weights = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    weights /= weights.sum()
    along = np.apply_along_axis(np.convolve, 1, padded.astype(np.float64), weights, "valid")
    smoothed = np.apply_along_axis(np.convolve, 2, along, weights, "valid")
    np.testing.assert_allclose(scores.image_scores, smoothed.max(axis=(1, 2)), rtol=1e-5)


def test_an_image_scores_the_same_to_the_bit_in_any_company():
    detector, test = detector_of(fitted()), embedded(9, seed=1)
    whole = detector.score(test)
    for number in range(9):
        alone = detector.score({name: array[number, None] for name, array in test.items()})
        np.testing.assert_array_equal(alone.anomaly_maps[0], whole.anomaly_maps[number])
        assert alone.image_scores[0] == whole.image_scores[number]


def test_a_normal_image_scores_lower_than_another_pattern():
    detector, test = detector_of(fitted(epochs=10)), embedded(6, seed=1)
    strange = {name: array[:, ::-1].copy() for name, array in test.items()}
    normal = detector.score(test).image_scores
    assert normal.max() < detector.score(strange).image_scores.min()


# What cannot be.


def test_what_leaves_too_little_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match=r"gamma_d=16 leaves nothing of 15 channels; lower it"):
        fitted(gamma_d=16)
    too_few = r"30 locations and method.gamma_c=7 make 4 centres, and the loss takes 5"
    with pytest.raises(ConfigError, match=too_few):
        fitted(gamma_c=7)


@pytest.mark.parametrize("name", ["nu", "epochs", "training_batch", "learning_rate"])
def test_a_wrong_setting_is_named(name):
    with pytest.raises(ConfigError, match=rf"method\.{name}"):
        build("cfa", {name: 0})
