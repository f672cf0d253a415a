"""Mutual scoring: how far each patch of an image is from the patches of other images.

Li, Huang, Xue, Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with
Mutual Scoring of the Unlabeled Images", ICLR 2024 (arXiv 2401.16753), section 3.2. A patch of image
i has, by each other image j, the distance to the nearest patch of j (Eq. 3), and its score is the
mean of the lowest share of these, 30 % in the paper (Eq. 4): what most images show is near in
most of them, and what one shows alone is near in none.
"""

import numpy as np
from jaxtyping import Float32, Float64

# Numbers in one product: 1 MiB, which stays in a core's cache until its rows' nearest are found.
_PRODUCT = 2**18


def compared(
    rows: Float32[np.ndarray, "patches dim"],
) -> Float32[np.ndarray, "patches dim_1"]:
    """Return (c, -|c|^2 / 2) for each patch c of an image that others are compared with.

    Its product with (q, 1) is (|q|^2 - |q - c|^2) / 2: the nearest c has the largest.
    """
    half = np.einsum("pd,pd->p", rows, rows) / np.float32(-2)
    return np.concatenate([rows, half[:, np.newaxis]], axis=1)


def asking(
    rows: Float32[np.ndarray, "patches dim"],
) -> Float32[np.ndarray, "patches dim_1"]:
    """Return (q, 1) for each patch q of an image that is compared."""
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)


def nearest_distances(
    image: Float32[np.ndarray, "patches dim_1"], other: Float32[np.ndarray, "others dim_1"]
) -> Float64[np.ndarray, " patches"]:
    """Return the L2 distance of each patch of one image to the nearest patch of another one.

    A product proposes the nearest, in float32, and that one is measured by a direct difference in
    float64. Products are of two images, in blocks whose size hangs on the two shapes alone: so no
    bit depends on what else is compared. Which of two patches is taken that are as near but for the
    rounding of a product, a few 1e-7 of the squared length, is left to the product.
    O(patches * others * dim), in memory for 2^18 numbers, or one row of `others`.

    Args:
        image: From `asking`.
        other: From `compared`.
    """
    rows = max(1, _PRODUCT // len(other))
    found = np.empty(len(image))
    for begin in range(0, len(image), rows):
        block = image[begin : begin + rows]
        nearest = (block @ other.T).argmax(axis=1)
        difference = block[:, :-1].astype(np.float64)
        difference -= other[nearest, :-1]
        found[begin : begin + rows] = np.einsum("pd,pd->p", difference, difference)
    return np.sqrt(found)


def mean_of_lowest(
    distances: Float64[np.ndarray, "images patches"], share: float
) -> Float64[np.ndarray, " patches"]:
    """Return the mean of the lowest share of each column, of one number at least (Eq. 4).

    As many as the authors' code takes: the share of the images, rounded down. The order of the
    images changes no bit.

    Args:
        distances: Of each patch of one image, by each other image, at least one.
        share: In 0..1.
    """
    count = max(1, int(len(distances) * share))
    lowest = np.sort(distances, axis=0)[:count]
    total: np.ndarray = np.add.reduce(lowest, axis=0)
    return total / count
