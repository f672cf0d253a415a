"""Search among the pixels of chosen images: exact, whatever else is in memory."""

from threading import Event
from time import sleep

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.galleries import Galleries

PIXELS, DIMS = (64, 16), (40, 96)


def low_rank(count: int, seed: int) -> list[list[np.ndarray]]:
    """Images whose features lie near a few dimensions, as those of networks do."""
    rng = np.random.default_rng(seed)
    bases = [np.random.default_rng(9).standard_normal((12, dim)) for dim in DIMS]
    return [
        [
            (
                rng.standard_normal((pixels, 12)) @ base + 0.05 * rng.standard_normal((pixels, dim))
            ).astype(np.float32)
            for pixels, dim, base in zip(PIXELS, DIMS, bases, strict=True)
        ]
        for _ in range(count)
    ]


TRAIN, QUERIES = low_rank(30, 0), low_rank(4, 1)


def wanted(image, chosen, k):
    found = []
    for layer, queries in enumerate(image):
        rows = np.concatenate([TRAIN[number][layer] for number in chosen])
        found.append(ExactSearch.over(rows).nearest(queries, min(k, len(rows)))[0])
    return found


@pytest.mark.parametrize("budget", [1, 200_000, 2**30])
@pytest.mark.parametrize("k", [1, 5])
def test_distances_are_those_of_the_dense_search_to_the_bit(budget, k):
    galleries = Galleries(TRAIN.__getitem__, 30, budget=budget)
    rng = np.random.default_rng(2)
    for image in QUERIES:
        chosen = rng.choice(30, 7, replace=False).tolist()
        for ours, dense in zip(
            galleries.nearest(image, chosen, k), wanted(image, chosen, k), strict=True
        ):
            np.testing.assert_array_equal(ours, dense)


def test_these_images_are_pruned_and_not_searched_densely():
    galleries = Galleries(TRAIN.__getitem__, 30)
    slots = galleries._load_slots([2, 11, 29])
    for layer, queries in zip(galleries._layers, QUERIES[0], strict=True):
        assert layer.search(slots, 1)(queries) is not None


def test_a_load_that_fails_leaves_no_other_that_writes_later():
    is_broken, is_loading = True, Event()

    def load(number: int) -> list[np.ndarray]:
        if number == 1 and is_broken:
            is_loading.wait(5)
            raise OSError("1")
        if number == 2 and is_broken:
            is_loading.set()
            sleep(0.3)
        return TRAIN[number]

    galleries = Galleries(load, 30, budget=2**30, threads=2)
    with pytest.raises(OSError, match="1"):
        galleries.nearest(QUERIES[0], [1, 2], 1)
    is_broken = False
    galleries.nearest(QUERIES[0], [3, 4], 1)
    # Time for what is left of the failed search.
    sleep(0.5)
    for asked in ([3], [4]):
        for ours, dense in zip(
            galleries.nearest(QUERIES[0], asked, 1), wanted(QUERIES[0], asked, 1), strict=True
        ):
            np.testing.assert_array_equal(ours, dense)


@settings(max_examples=10)
@given(
    chosen=st.lists(st.integers(0, 29), min_size=1, max_size=12, unique=True),
    warm=st.lists(st.integers(0, 29), max_size=12, unique=True),
    k=st.integers(1, 40),
    threads=st.integers(1, 3),
    count=st.integers(1, 64),
)
def test_bits_depend_on_the_chosen_images_alone(chosen, warm, k, threads, count):
    # Room for about 5 of the 30.
    galleries = Galleries(TRAIN.__getitem__, 30, budget=150_000, threads=threads)
    if warm:
        galleries.nearest(QUERIES[3], warm, 1)
    image = [rows[:count] for rows in QUERIES[0]]
    for ours, dense in zip(
        galleries.nearest(image, chosen, k), wanted(image, sorted(chosen), k), strict=True
    ):
        np.testing.assert_array_equal(ours, dense)


@pytest.mark.parametrize("scale", [0, 1e-3, 100, 1e6])
def test_images_unlike_those_that_bounds_were_learned_from(scale):
    """Their coordinates leave the range of a byte, or their lengths the bytes that they have."""
    odd = [[np.float32(scale) * rows for rows in TRAIN[4]], TRAIN[5], TRAIN[6]]
    galleries = Galleries(lambda n: odd[n] if n < 3 else TRAIN[n], 30)
    galleries._layers = Galleries(TRAIN.__getitem__, 30)._layers
    for asked in (QUERIES[0], odd[0]):
        for layer, ours in enumerate(galleries.nearest(asked, [0, 1, 2], 2)):
            rows = np.concatenate([image[layer] for image in odd])
            np.testing.assert_array_equal(ours, ExactSearch.over(rows).nearest(asked[layer], 2)[0])


def test_noise_that_cannot_be_pruned_is_searched_densely():
    rng = np.random.default_rng(0)
    noise = [[rng.standard_normal((200, 400)).astype(np.float32)] for _ in range(6)]
    galleries = Galleries(noise.__getitem__, 6)
    assert galleries._layers[0].search(galleries._load_slots([1, 2]), 1)(noise[0][0]) is None
    (ours,) = galleries.nearest(noise[0], [1, 2, 5], 3)
    rows = np.concatenate([noise[n][0] for n in (1, 2, 5)])
    np.testing.assert_array_equal(ours, ExactSearch.over(rows).nearest(noise[0][0], 3)[0])


def test_no_pixel_is_left_out():
    """Every one of them finds itself, the last of the last image too."""
    galleries = Galleries(TRAIN.__getitem__, 30, budget=150_000)
    for number in (0, 7, 29):
        for distances in galleries.nearest(TRAIN[number], list(range(30)), 1):
            assert distances.max() == 0


def test_float64_agrees():
    galleries = Galleries(TRAIN.__getitem__, 30)
    found = galleries.nearest(QUERIES[0], [3, 8], 1)
    for layer, distances in enumerate(found):
        rows = np.concatenate([TRAIN[n][layer] for n in (3, 8)]).astype(np.float64)
        between = np.linalg.norm(QUERIES[0][layer][:, None] - rows, axis=2)
        np.testing.assert_allclose(distances[:, 0], between.min(axis=1), rtol=1e-6)


def test_fewer_pixels_than_k_all_count():
    galleries = Galleries(TRAIN.__getitem__, 30)
    found = galleries.nearest(QUERIES[0], [5], 1000)
    assert [distances.shape[1] for distances in found] == list(PIXELS)


def test_same_place_compares_one_pixel_an_image():
    galleries = Galleries(TRAIN.__getitem__, 30, is_pruned=False, budget=1)
    found = galleries.same_place(QUERIES[0], [1, 2, 3], 2)
    for layer, distances in enumerate(found):
        between = np.stack(
            [
                np.linalg.norm(TRAIN[n][layer].astype(np.float64) - QUERIES[0][layer], axis=1)
                for n in (1, 2, 3)
            ],
            axis=1,
        )
        np.testing.assert_allclose(distances, np.sort(between, axis=1)[:, :2], rtol=1e-6)


def test_each_image_is_loaded_once_while_there_is_room():
    loaded = []

    def load(number):
        loaded.append(number)
        return TRAIN[number]

    galleries = Galleries(load, 30)
    loaded.clear()
    for _ in range(3):
        galleries.nearest(QUERIES[0], [4, 7, 9], 1)
    assert sorted(loaded) == [4, 7, 9]


def test_a_load_that_fails_leaves_nothing_behind():
    broken = {7}

    def load(number):
        if number in broken:
            raise OSError("the disk is gone")
        return TRAIN[number]

    galleries = Galleries(lambda n: TRAIN[n], 30)
    galleries._load = load
    with pytest.raises(OSError, match="disk"):
        galleries.nearest(QUERIES[0], [4, 7], 1)
    broken.clear()
    found = galleries.nearest(QUERIES[0], [4, 7], 1)
    for ours, dense in zip(found, wanted(QUERIES[0], [4, 7], 1), strict=True):
        np.testing.assert_array_equal(ours, dense)


def test_pixels_that_are_all_about_as_near_are_told_apart():
    """On a shell around a query, thinner than a step of a byte is long."""
    rng = np.random.default_rng(5)
    shells = [[rows.copy() for rows in image] for image in TRAIN]
    for image in shells[:3]:
        for layer, rows in enumerate(image):
            away = rng.standard_normal(rows.shape)
            away *= (
                3 * rng.uniform(1, 1.001, (len(rows), 1)) / np.linalg.norm(away, axis=1)[:, None]
            )
            rows[:] = QUERIES[0][layer][0] + away
    galleries = Galleries(shells.__getitem__, 30)
    galleries._layers = Galleries(TRAIN.__getitem__, 30)._layers
    image = [rows[:1] for rows in QUERIES[0]]
    for layer, ours in enumerate(galleries.nearest(image, [0, 1, 2], 1)):
        rows = np.concatenate([shells[n][layer] for n in (0, 1, 2)])
        np.testing.assert_array_equal(ours, ExactSearch.over(rows).nearest(image[layer], 1)[0])


def test_bounds_allow_for_the_largest_error_of_each_image():
    """Random images hardly come near it: the errors of queries and rows seldom point one way."""
    galleries = Galleries(TRAIN.__getitem__, 30, budget=1)
    for number in (4, 9):
        (slot,) = galleries._load_slots([number])
        for layer, rows in zip(galleries._layers, TRAIN[number], strict=True):
            found = layer._projection.of_bank(rows)
            assert layer._byte_errors[slot] == found.byte_error.max() > 0
            assert layer._float_errors[slot] == found.float_error.max() > 0
