"""Search among the pixels of chosen images: exact, whatever else is in memory."""

import numpy as np
import pytest

from pipeline.index.exact import ExactSearch
from pipeline.index.galleries import Galleries

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
