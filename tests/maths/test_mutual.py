"""Mutual scoring against its definition, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.maths import mutual
from patchlake.pipeline.maths.mutual import asking, compared, mean_of_lowest, nearest_distances

sizes = st.integers(1, 9)


def patches(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def by_definition(image, other):
    """The least of all distances, patch by patch, in float64."""
    differences = image[:, None].astype(np.float64) - other[None]
    return np.sqrt((differences**2).sum(axis=2)).min(axis=1)


@given(ours=sizes, theirs=sizes, dim=sizes, seed=st.integers(0, 1000))
def test_distances_are_those_of_the_definition(ours: int, theirs: int, dim: int, seed: int):
    image, other = patches(ours, dim, seed), patches(theirs, dim, seed + 1)
    found = nearest_distances(asking(image), compared(other))
    np.testing.assert_allclose(found, by_definition(image, other), rtol=1e-6)


@given(seed=st.integers(0, 1000))
def test_a_patch_that_is_there_has_no_distance(seed: int):
    """Where the product alone would leave some 1e-3."""
    other = 100 + patches(7, 5, seed)
    found = nearest_distances(asking(other[::2]), compared(other))
    np.testing.assert_array_equal(found, 0)


@given(seed=st.integers(0, 1000), order=st.permutations(range(8)))
def test_where_the_patches_of_the_other_image_are_is_no_matter(seed: int, order: list[int]):
    image, other = patches(6, 4, seed), patches(8, 4, seed + 1)
    found = nearest_distances(asking(image), compared(other))
    moved = nearest_distances(asking(image), compared(other[order]))
    np.testing.assert_array_equal(moved, found)


@pytest.mark.parametrize("numbers", [1, 60, 200, 10_000])
def test_blocks_of_any_size_give_the_same_bits(numbers: int, monkeypatch: pytest.MonkeyPatch):
    image, other = asking(patches(50, 40)), compared(patches(60, 40, seed=1))
    expected = nearest_distances(image, other)
    monkeypatch.setattr(mutual, "_PRODUCT", numbers)
    np.testing.assert_array_equal(nearest_distances(image, other), expected)


@given(images=st.integers(1, 12), share=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_the_lowest_share_is_that_of_sorted_numbers(images: int, share: float, seed: int):
    distances = np.random.default_rng(seed).random((images, 3))
    count = max(1, int(images * share))
    expected = [sorted(column)[:count] for column in distances.T.tolist()]
    found = mean_of_lowest(distances, share)
    np.testing.assert_allclose(found, np.mean(expected, axis=1), rtol=1e-12)


@given(order=st.permutations(range(10)), seed=st.integers(0, 1000))
def test_the_order_of_images_changes_no_bit(order: list[int], seed: int):
    distances = np.random.default_rng(seed).random((10, 5))
    expected = mean_of_lowest(distances, 0.3)
    np.testing.assert_array_equal(mean_of_lowest(distances[order], 0.3), expected)


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 1))
def test_a_farther_image_lowers_no_score(seed: int, share: float):
    """What one more image can do: a nearer one lowers a mean, one at no distance at all most."""
    distances = np.random.default_rng(seed).random((9, 4))
    found = mean_of_lowest(distances, share)
    copied = mean_of_lowest(np.concatenate([distances, np.zeros((1, 4))]), share)
    assert (copied <= found).all()
    farther = np.concatenate([distances, np.full((1, 4), 2.0)])
    assert (mean_of_lowest(farther, share) >= found).all()
