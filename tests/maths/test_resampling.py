"""Matrices of resizing and smoothing, against torch and scipy in two dimensions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchlake.pipeline.maths.resampling import (
    bilinear_matrix,
    gaussian_matrix,
    smoothed_rows,
)

sides = st.integers(1, 60)
sigmas = st.floats(0, 20)


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [
        ((28, 28), (224, 224)),
        ((224, 224), (256, 256)),
        ((256, 200), (28, 63)),
        ((7, 1), (3, 5)),
        ((5, 9), (1, 1)),
        ((6, 6), (6, 6)),
    ],
)
def test_bilinear_equals_torch_interpolate(size_in, size_out):
    grid = np.random.default_rng(0).standard_normal(size_in)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[None, None], size=size_out, mode="bilinear", align_corners=False
    )[0, 0].numpy()

    rows, columns = (bilinear_matrix(o, i) for o, i in zip(size_out, size_in, strict=True))

    np.testing.assert_allclose(rows @ grid @ columns.T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("shape", [(224, 224), (31, 8), (1, 5)])
def test_gaussian_equals_scipy_gaussian_filter(shape, sigma):
    # sigma 30 on 8 pixels: the kernel reaches over the border many times.
    grid = np.random.default_rng(0).standard_normal(shape)
    rows, columns = (gaussian_matrix(size, sigma) for size in shape)

    smoothed = rows @ grid @ columns.T

    np.testing.assert_allclose(smoothed, ndimage.gaussian_filter(grid, sigma), rtol=0, atol=1e-6)


@given(size_out=sides, size_in=sides)
@settings(deadline=None)
def test_bilinear_rows_are_averages_so_constants_stay(size_out, size_in):
    matrix = bilinear_matrix(size_out, size_in)

    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix @ np.full(size_in, 7.5), 7.5, atol=1e-11)


@given(size=sides, sigma=sigmas)
@settings(deadline=None)
def test_gaussian_rows_are_averages_so_constants_stay(size, sigma):
    matrix = gaussian_matrix(size, sigma)

    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix @ np.full(size, 7.5), 7.5, atol=1e-11)


@given(size=sides)
@settings(deadline=None)
def test_the_same_size_is_the_identity(size):
    np.testing.assert_array_equal(bilinear_matrix(size, size), np.eye(size))


def test_matrices_are_shared_and_read_only():
    for matrix, again in (
        (bilinear_matrix(8, 4), bilinear_matrix(8, 4)),
        (gaussian_matrix(8, 2.0), gaussian_matrix(8, 2.0)),
    ):
        assert matrix is again
        assert matrix.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1.0


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (-1, 4)])
def test_a_size_below_one_is_named(sizes):
    with pytest.raises(ValueError, match=f"{sizes[1]} pixels .* to {sizes[0]}"):
        bilinear_matrix(*sizes)


@pytest.mark.parametrize(("size", "sigma"), [(0, 1.0), (4, -1.0), (4, np.inf), (4, np.nan)])
def test_an_impossible_gaussian_is_named(size, sigma):
    with pytest.raises(ValueError, match=f"size {size} .* sigma {sigma}"):
        gaussian_matrix(size, sigma)


@given(size=sides, size_in=sides, sigma=st.floats(0.3, 20), data=st.data())
@settings(deadline=None)
def test_rows_of_the_smoothed_map_are_those_of_the_product(size, size_in, sigma, data):
    rows = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))

    expected = (gaussian_matrix(size, sigma) @ bilinear_matrix(size, size_in))[rows]

    found = smoothed_rows(rows, size, size_in, sigma)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
