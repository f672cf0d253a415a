"""Products of bytes: exact whatever the processor has, and by what is faster there."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.index import products


def exactly(queries: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Return the product in int64, which is the oracle."""
    return queries.astype(np.int64) @ tile.astype(np.int64).T


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 300),
    st.sampled_from([products.multiply, products.of_floats]),
)
def test_products_are_exact(seed, queries, width, coordinates, product):
    rng = np.random.default_rng(seed)
    left, right = (
        rng.integers(-127, 128, (rows, coordinates)).astype(np.int8) for rows in (queries, width)
    )
    out = np.empty((queries, width), np.int32)
    product(left, right, out)
    np.testing.assert_array_equal(out, exactly(left, right))


@pytest.mark.parametrize("product", [products.multiply, products.of_floats])
def test_the_largest_sums_are_exact(product):
    left = np.full((3, 1040), 127, np.int8)
    right = left.copy()
    # Odd sums near 2^24, of which float32 has no more than the integers.
    right[1, -1], right[2] = 126, -127
    out = np.empty((3, 3), np.int32)
    product(left, right, out)
    np.testing.assert_array_equal(out, exactly(left, right))
    assert out[0].tolist() == [1040 * 127**2, 1040 * 127**2 - 127, -1040 * 127**2]


def saturates(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
    """Multiply as processors without VNNI may: pairs of products are added in 16 bits."""
    out[:] = exactly(queries[:, -1:], tile[:, -1:])
    for one in range(0, queries.shape[1] - 1, 2):
        pairs = exactly(queries[:, one : one + 2], tile[:, one : one + 2])
        out += np.clip(pairs, -(2**15), 2**15 - 1).astype(np.int32)


def is_absent(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
    """Fail as a torch without the function does."""
    raise AttributeError("module 'torch' has no attribute '_int_mm'")


def is_slow(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
    """Multiply as a plain loop does: exactly, in a second."""
    products.of_floats(queries, tile, out)
    time.sleep(1)


@pytest.mark.parametrize("product", [saturates, is_absent, is_slow])
def test_a_product_that_does_not_pay_is_not_used(product):
    assert not products.pays(product)


def test_an_exact_product_that_is_faster_is_used():
    known: list[np.ndarray] = []

    def is_quick(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
        if not known:
            known.append(exactly(queries, tile).astype(np.int32))
        out[:] = known[0]

    assert products.pays(is_quick)
