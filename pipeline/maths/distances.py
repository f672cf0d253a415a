"""Squared distances in float32, directly and by a product, and how far a product may be off."""

import numpy as np
from jaxtyping import Float32


def augment(
    rows: np.ndarray, mean: np.ndarray, out: np.ndarray | None = None
) -> Float32[np.ndarray, "rows dim_1"]:
    """Return (x - mean, 1) for each row x.

    Its product with (-2 c, |c|^2) is |x - c|^2 - |x|^2, for x and c about the mean.
    """
    augmented = np.empty((len(rows), rows.shape[1] + 1), np.float32) if out is None else out
    np.subtract(rows, mean, out=augmented[:, :-1])
    augmented[:, -1] = 1
    return augmented


def squared_norms(rows: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x|^2 of each row."""
    norms: np.ndarray = np.einsum("nd,nd->n", rows, rows)
    return norms


def squared_distances(left: np.ndarray, right: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x - y|^2 of each pair of rows, by direct differences."""
    return squared_lengths(left - right)


def squared_lengths(differences: np.ndarray) -> Float32[np.ndarray, " rows"]:
    """Return |x - y|^2 of each row x - y."""
    squared = squared_norms(differences)
    # Subnormal float32 numbers have few digits, or none: rows that are so near count as equal.
    squared[squared < np.finfo(np.float32).tiny] = 0
    return squared


def product_error(
    norms: np.ndarray, bounds: np.ndarray, largest_norm: float, dim: int
) -> Float32[np.ndarray, " rows"]:
    """Return how much |x|^2 + |c|^2 - 2 x.c may be wrong by rounding, for any c that can be nearer.

    A float32 dot product of d terms errs by at most d 2^-24 |x||c|. So the three terms err by at
    most d 2^-24 (|x| + |c|)^2 together, and adding them up by less than 3 2^-24 (|x| + |c|)^2 more.
    All of that counts twice, because the direct difference with which the sum is compared errs,
    too.

    What counts is the longest c that can be nearer than the bound, |c| <= |x| + sqrt(bound). A
    longer one is so much farther away that its own rounding cannot make it seem near. So a single
    outlier among the centres does not make the error large for all rows.

    Args:
        norms: |x|^2 of each row.
        bounds: The squared distance within which a centre is nearer; it may be infinite.
        largest_norm: The largest |c|^2 of all centres.
        dim: d.
    """
    lengths = np.sqrt(norms)
    reach = lengths + np.minimum(lengths + np.sqrt(bounds), np.sqrt(np.float32(largest_norm)))
    error: np.ndarray = np.float32(2 * (dim + 4) * 2.0**-24) * reach * reach
    return error + np.finfo(np.float32).tiny
