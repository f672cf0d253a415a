"""Statistics in parts: those of the whole, for any cut, and whitening without an inverse."""

import re
import tracemalloc
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths import gaussian
from patchlake.pipeline.maths.gaussian import (
    Moments,
    covariance_of,
    merge,
    merge_rows,
    packed,
    unpacked,
    whitener,
    without_all,
)


def normal(shape, *, seed=0, offset=0.0):
    """Rows with a scale and a mean of their own in each dimension."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.5, 2, shape[1:])
    return (rng.standard_normal(shape) * spread + offset * (1 + spread)).astype(np.float32)


def by_hand(rows):
    """Mean and covariance of one position, in the widest floats there are."""
    wide = rows.astype(np.longdouble)
    mean = wide.mean(axis=0)
    return mean, (wide - mean).T @ (wide - mean) / (len(rows) - 1)


@pytest.mark.parametrize("positions", [(), (1,), (5,)])
@given(
    cuts=st.lists(st.integers(1, 39), max_size=6),
    dim=st.integers(1, 6),
    offset=st.sampled_from([0.0, -7.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_any_split_gives_the_statistics_of_the_whole(positions, cuts, dim, offset, seed):
    rows = normal((40, *positions, dim), seed=seed, offset=offset)
    parts = np.split(rows, sorted(set(cuts)))

    merged = reduce(merge, [Moments.of(part) for part in parts])

    whole = Moments.of(rows)
    assert merged.count == whole.count == 40
    assert merged.mean.shape == (*positions, dim)
    covariance = whole.covariance()
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.covariance(), covariance, rtol=1e-6, atol=1e-9 * scale)
    for place in np.ndindex(*positions):
        mean, expected = by_hand(rows[(slice(None), *place)])
        np.testing.assert_allclose(merged.mean[place], mean.astype(float), rtol=1e-12, atol=1e-12)
        found = merged.covariance()[place]
        np.testing.assert_allclose(found, expected.astype(float), rtol=1e-6, atol=1e-9 * scale)


@given(order=st.permutations(range(12)))
@settings(max_examples=20)
def test_the_order_of_images_and_parts_does_not_matter(order):
    rows = normal((12, 3, 4), offset=100)
    parts = [Moments.of(rows[[number]]) for number in order]
    merged, whole = reduce(merge, parts), Moments.of(rows)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_two_images_of_two_features_by_hand():
    moments = Moments.of(np.array([[1, 2], [3, 8]], np.float32))
    np.testing.assert_array_equal(moments.mean, [2, 5])
    np.testing.assert_array_equal(moments.scatter, [[2, 6], [6, 18]])
    np.testing.assert_array_equal(moments.covariance(ddof=0), [[1, 3], [3, 9]])
    # L of [[4, 2], [2, 5]] is [[2, 0], [1, 2]].
    whitening = whitener(np.array([[4.0, 2.0], [2.0, 5.0]]))
    np.testing.assert_allclose(whitening, [[0.5, 0], [-0.25, 0.5]], rtol=1e-15)


def test_a_constant_feature_has_no_scatter_at_all():
    rows = np.full((300, 2, 3), 0.1, np.float32)
    merged = merge(Moments.of(rows[:100]), Moments.of(rows[100:]))
    np.testing.assert_array_equal(merged.scatter, 0)
    np.testing.assert_array_equal(merged.mean, np.float64(np.float32(0.1)))


def test_scatter_is_exactly_symmetric():
    merged = merge(Moments.of(normal((9, 4, 7))), Moments.of(normal((5, 4, 7), seed=1)))
    np.testing.assert_array_equal(merged.scatter, merged.scatter.transpose(0, 2, 1))


# From 33 features on, BLAS kernels take other paths; three positions a block make many blocks.
def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(gaussian, "_BLOCK_BYTES", 3 * 40 * 33 * 8)
    rows, others = normal((40, 50, 33)), normal((20, 50, 33), seed=1)
    results = []
    for threads in (1, 2, 7):
        merged = merge(
            Moments.of(rows, threads=threads), Moments.of(others, threads=threads), threads=threads
        )
        whitening = whitener(merged.covariance() + 0.01 * np.eye(33), threads=threads)
        results.append((merged.mean, merged.scatter, whitening))
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_position_has_the_same_bits_among_any_others():
    rows = normal((40, 50, 33))
    whole, few = Moments.of(rows), Moments.of(rows[:, 7:11])
    np.testing.assert_array_equal(whole.mean[7:11], few.mean)
    np.testing.assert_array_equal(whole.scatter[7:11], few.scatter)


@given(count=st.integers(2, 5), dim=st.integers(6, 20), seed=st.integers(0, 99))
def test_fewer_images_than_features_whiten_after_a_multiple_of_the_identity(count, dim, seed):
    rows = normal((count, 3, dim), seed=seed)
    covariance = Moments.of(rows).covariance() + 0.01 * np.eye(dim)
    whitening = whitener(covariance)
    precision = whitening.transpose(0, 2, 1) @ whitening
    np.testing.assert_allclose(precision, np.linalg.inv(covariance), rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(whitening, np.tril(whitening))


def test_whitened_distances_are_those_of_scipy():
    rows = normal((60, 2, 5), offset=3)
    moments = Moments.of(rows)
    whitening = whitener(moments.covariance())
    for place in range(2):
        precision = np.linalg.inv(moments.covariance()[place])
        for row in rows[:5, place]:
            found = np.linalg.norm(whitening[place] @ (row - moments.mean[place]))
            assert found == pytest.approx(mahalanobis(row, moments.mean[place], precision))


def test_a_covariance_without_inverse_is_named_with_what_to_do():
    rows = normal((5, 4, 3))
    rows[:, 2] = rows[0, 2]
    with pytest.raises(ConfigError, match=r"3 features at position 2 .* multiple of the identity"):
        whitener(Moments.of(rows).covariance())
    for singular in ([[np.nan] * 2] * 2, [[1.0, 0], [0, np.inf]], [[0.1, 0.3], [0.3, 0.9]]):
        with pytest.raises(ConfigError, match="2 features at position 0"):
            whitener(np.array(singular))


@given(count=st.integers(2, 8), dim=st.integers(9, 40), seed=st.integers(0, 99))
def test_fewer_images_than_features_are_refused_as_they_are(count, dim, seed):
    # Rounding makes some of these singular matrices look positive definite to LAPACK.
    with pytest.raises(ConfigError, match="not positive definite"):
        whitener(Moments.of(normal((count, dim), seed=seed)).covariance())


@pytest.mark.parametrize("positions", [(), (4,)])
@given(dim=st.integers(1, 9))
def test_packing_keeps_a_triangle(positions, dim):
    whitening = whitener(Moments.of(normal((30, *positions, dim))).covariance())
    entries = packed(whitening)
    assert entries.shape == (*positions, dim * (dim + 1) // 2)
    assert entries.dtype == np.float32
    np.testing.assert_array_equal(unpacked(entries, dim), whitening.astype(np.float32))


def test_a_callers_mistake_is_told_with_both_values():
    with pytest.raises(ValueError, match=r"\(0, 3\) has no rows"):
        Moments.of(np.empty((0, 3), np.float32))
    with pytest.raises(ValueError, match=r"1 rows have no covariance with ddof 1"):
        Moments.of(normal((1, 3))).covariance()
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        merge(Moments.of(normal((2, 4, 3))), Moments.of(normal((2, 5, 3))))
    with pytest.raises(ValueError, match=r"5 entries are not a triangle of 3 dimensions, .* 6"):
        unpacked(np.zeros(5, np.float32), 3)


def test_a_merge_may_take_the_memory_of_the_left_and_gives_the_same_bits():
    rows = np.random.default_rng(0).normal(size=(9, 4, 3)).astype(np.float32)
    left, right = Moments.of(rows[:5]), Moments.of(rows[5:])
    expected = merge(left, right)
    left.scatter.flags.writeable = False
    kept = merge(left, right, reuse=True)
    assert not np.shares_memory(kept.scatter, left.scatter)
    left.scatter.flags.writeable = True
    taken = merge(left, right, reuse=True)
    assert np.shares_memory(taken.scatter, left.scatter)
    for found in (kept, taken):
        np.testing.assert_array_equal(found.scatter, expected.scatter)
        np.testing.assert_array_equal(found.mean, expected.mean)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_merged_in_the_memory_of_the_left_and_to_the_bit_as_moments(monkeypatch, threads):
    monkeypatch.setattr(gaussian, "_BLOCK_BYTES", 3 * 40 * 33 * 8)
    first, second = normal((9, 5, 33)), normal((40, 5, 33), seed=1) + 3
    expected = merge(Moments.of(first), Moments.of(second))
    left = merge_rows(None, first, threads=threads)
    found = merge_rows(left, second, threads=threads)
    assert np.shares_memory(found.scatter, left.scatter)
    assert np.shares_memory(found.mean, left.mean)
    assert found.count == expected.count
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.scatter, expected.scatter)


@pytest.mark.parametrize("count", [1, 4, 64])
def test_beside_the_moments_little_memory_is_taken(count):
    rows, others = normal((count, 100, 200)), normal((count, 100, 200), seed=1)
    tracemalloc.start()
    moments = Moments.of(rows)
    taken = tracemalloc.get_traced_memory()[1] - moments.scatter.nbytes
    tracemalloc.reset_peak()
    merge_rows(moments, others)
    more = tracemalloc.get_traced_memory()[1] - moments.scatter.nbytes
    tracemalloc.stop()
    # Of a state of 31 MiB.
    assert max(taken, more) < 9 * 2**20


def test_rows_that_do_not_fit_are_refused_with_both_shapes():
    moments = Moments.of(normal((2, 4, 3)))
    for rows in (normal((2, 5, 3)), normal((0, 4, 3)), normal((2, 1, 3))):
        with pytest.raises(ValueError, match=rf"{re.escape(str(rows.shape))} .* \(4, 3\)"):
            merge_rows(moments, rows)


def test_positions_of_two_axes_that_do_not_lie_in_order_are_merged_in_place_as_well():
    left, right = Moments.of(normal((9, 3, 4, 2))), Moments.of(normal((5, 3, 4, 2), seed=1))
    expected = merge(left, right).scatter
    turned = Moments(9, left.mean, np.asarray(left.scatter, order="F"))
    np.testing.assert_array_equal(merge(turned, right, reuse=True).scatter, expected)
    turned = Moments(9, left.mean.copy(), np.asarray(left.scatter, order="F"))
    found = merge_rows(turned, normal((5, 3, 4, 2), seed=1))
    np.testing.assert_array_equal(found.scatter, expected)


@given(dim=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_triangles_of_any_size_are_inverted(dim, seed):
    rows = normal((2 * dim + 2, 3, dim), seed=seed) * np.logspace(-2, 2, dim).astype(np.float32)
    covariance = Moments.of(rows).covariance()
    whitening = whitener(covariance)
    identity = np.broadcast_to(np.eye(dim), covariance.shape)
    np.testing.assert_allclose(whitening @ np.linalg.cholesky(covariance), identity, atol=1e-9)
    np.testing.assert_array_equal(whitening, np.tril(whitening))
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    scale = spread[:, :, np.newaxis] * spread[:, np.newaxis, :]
    np.testing.assert_allclose(covariance_of(whitening) / scale, covariance / scale, atol=1e-9)


def test_a_whitening_may_take_the_memory_of_the_covariance_and_has_the_same_bits():
    rows = np.random.default_rng(0).normal(size=(90, 40, 3)).astype(np.float32)
    covariance = Moments.of(rows).covariance()
    expected = whitener(covariance)
    taken = whitener(covariance, threads=2, reuse=True)
    assert np.shares_memory(taken, covariance)
    np.testing.assert_array_equal(taken, expected)


@given(left=st.integers(1, 8), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_distances_without_some_images_are_those_to_gaussians_of_the_others(left, dim, seed):
    """Against Gaussians that are fitted again, in a form that has no identity of Woodbury."""
    count = 30
    rows = np.random.default_rng(seed).standard_normal((count, dim)) @ np.diag(
        np.arange(1, dim + 1)
    )
    mean, covariance = rows.mean(axis=0), np.cov(rows.T).reshape(dim, dim)
    centred = rows[:left] - mean
    gram = centred @ np.linalg.inv(covariance) @ centred.T
    found = without_all(gram[None], count, 1 / (count - 1))[0] * (count - left - 1) / (count - 1)
    others = rows[left:]
    inverse = np.linalg.inv(np.cov(others.T).reshape(dim, dim))
    wanted = [mahalanobis(row, others.mean(axis=0), inverse) ** 2 for row in rows[:left]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
