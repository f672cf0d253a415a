"""A projection nearly keeps distances, and exactly the same of a row whatever is beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.maths.projection import gaussian_projection, projected


def rows_of(count: int, dim: int, seed: int) -> np.ndarray:
    """Rows of very different lengths, with values of very different sizes, and one of zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dim)) * 10.0 ** rng.uniform(-4, 4, (count, 1))
    rows *= 10.0 ** rng.uniform(-3, 0, dim)
    rows[0] = 0
    return rows.astype(np.float32)


@given(
    count=st.integers(1, 30),
    dims=st.sampled_from([(2, 1), (24, 4), (96, 17), (1024, 128)]),
    seed=st.integers(0, 2**32),
)
def test_the_bits_of_a_row_depend_on_nothing_but_the_row(count, dims, seed):
    rows, rng = rows_of(count, dims[0], seed), np.random.default_rng(seed)
    projection = gaussian_projection(*dims, rng)
    whole = projected(rows, projection)
    assert whole.dtype == np.float32
    for number in range(count):
        np.testing.assert_array_equal(
            projected(rows[number : number + 1], projection)[0], whole[number]
        )
    # Sums are exact: so they are in any order.
    order = rng.permutation(dims[0])
    np.testing.assert_array_equal(projected(rows[:, order], projection[order]), whole)


@pytest.mark.parametrize("dims", [(24, 4), (1024, 128), (3584, 128)])
def test_it_is_the_product_but_for_a_rounding_that_distances_do_not_feel(dims):
    rows, projection = rows_of(50, dims[0], 0), gaussian_projection(*dims, np.random.default_rng(1))
    exact = rows.astype(np.float64) @ projection
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    assert (np.abs(projected(rows, projection) - exact) <= 3e-5 * lengths).all()


def test_distances_are_kept_to_some_percent():
    rows = np.random.default_rng(0).normal(size=(100, 1024)).astype(np.float32)
    found = projected(rows, gaussian_projection(1024, 128, np.random.default_rng(1)))
    ratio = np.linalg.norm(found[1:] - found[:-1], axis=1)
    ratio /= np.linalg.norm(rows[1:] - rows[:-1], axis=1)
    # 1 / sqrt(2 x 128) = 0.0625.
    assert abs(ratio.mean() - 1) < 0.03
    assert 0.04 < ratio.std() < 0.09


def test_more_rows_than_a_block_are_all_there():
    rows = np.arange(9000, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    projection = gaussian_projection(3, 1, np.random.default_rng(0))
    found = projected(rows, projection)
    np.testing.assert_allclose(found, rows @ projection, rtol=1e-4)
