"""Mean and covariance of some images at a time, at many positions, and their Cholesky whitening.

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", Stanford STAN-CS-79-773, 1979. The rows that are added together are centred on their own
mean. So no digits are lost where features lie far from zero, as they are with sums of x and x x^T.

No covariance is inverted: with Sigma = L L^T, the Mahalanobis distance is the length of
L^-1 (x - mean).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.blas import on_one_thread

# Bytes of a block's rows or of its scatter, whichever is more; a block has at least one position.
# 256 images x 100 dims x 8 B = 205 kB a position: ten stay in the cache; 160 (32 MiB) are half as
# fast.
_BLOCK_BYTES = 2 * 2**20

# Triangles of at most so many dimensions are inverted by LAPACK. For 100 dimensions, 13 was the
# fastest of 7, 13, 25 and 50.
_SMALL_TRIANGLE = 13

# A feature that is a function of others keeps some variance by rounding: (2^-24)^2 = 4e-15 of its
# square in float32, and in float64 2e-16 times how far the others are from dependent themselves.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """Statistics of some images at each position; `...` stands for an axis of positions, or none.

    `scatter` is the sum over images of (x - mean) (x - mean)^T.
    """

    count: int
    mean: Float64[np.ndarray, "... dim"]
    scatter: Float64[np.ndarray, "... dim dim"]

    @classmethod
    def of(cls, rows: Float32[np.ndarray, "rows ... dim"], *, threads: int = 1) -> "Moments":
        """Return the moments of rows over their first axis, which is images.

        Temporary memory is some 4 MiB a thread, or a position's rows in float64 and its scatter if
        these are more.

        Args:
            rows: At least one; not changed.
            threads: They change no bit.

        Raises:
            ValueError: if there are no rows.
        """
        count, *positions, dim = rows.shape
        if count == 0:
            raise ValueError(f"an array of shape {rows.shape} has no rows, and so no mean")
        flat = rows.reshape(count, -1, dim)
        mean = np.empty((flat.shape[1], dim))
        scatter = np.empty((flat.shape[1], dim, dim))

        def fill(block: slice) -> None:
            mean[block], scatter[block] = _mean_and_scatter(flat[:, block])

        in_blocks(fill, len(mean), bytes_each=max(count, dim) * dim * 8, threads=threads)
        return cls(count, mean.reshape(*positions, dim), scatter.reshape(*positions, dim, dim))

    def covariance(self, *, ddof: int = 1) -> Float64[np.ndarray, "... dim dim"]:
        """Return scatter / (count - ddof).

        Raises:
            ValueError: if there are not more than `ddof` rows.
        """
        if self.count <= ddof:
            raise ValueError(f"{self.count} rows have no covariance with ddof {ddof}")
        return self.scatter / (self.count - ddof)


def merge(left: Moments, right: Moments, *, threads: int = 1, reuse: bool = False) -> Moments:
    """Return the moments of the rows of both.

    Args:
        left: Those of some rows.
        right: Those of other rows.
        threads: They change no bit.
        reuse: Write the result into the memory of `left`, which must not be used afterwards, where
            it can be written: new memory takes longer than the sums.

    Raises:
        ValueError: if the two have different positions or dimensions.
    """
    if left.mean.shape != right.mean.shape:
        raise ValueError(
            f"moments of shapes {left.mean.shape} and {right.mean.shape} are not of the same "
            "positions"
        )
    dim = left.mean.shape[-1]
    merged = left.scatter if reuse and left.scatter.flags.writeable else left.scatter.copy()
    flat, other = merged.reshape(-1, dim, dim), right.scatter.reshape(-1, dim, dim)
    shift = (right.mean - left.mean).reshape(-1, dim)
    weight = left.count * right.count / (left.count + right.count)

    def fill(block: slice) -> None:
        _add_scatter(flat[block], other[block], shift[block], weight)

    in_blocks(fill, len(shift), bytes_each=dim * dim * 8, threads=threads)
    count = left.count + right.count
    mean = left.mean + (right.mean - left.mean) * (right.count / count)
    return Moments(count, mean, flat.reshape(left.scatter.shape))


def merge_rows(
    left: Moments | None, rows: Float32[np.ndarray, "rows ... dim"], *, threads: int = 1
) -> Moments:
    """Return `merge(left, Moments.of(rows))` to the bit, in the memory of `left`.

    Temporary memory is some 6 MiB a thread, or a position's rows in float64 and three times its
    scatter. None is the moments of no rows.
    """
    if left is None:
        return Moments.of(rows, threads=threads)
    if not len(rows) or rows.shape[1:] != left.mean.shape:
        raise ValueError(
            f"rows of shape {rows.shape} do not join moments of {left.mean.shape} features"
        )
    count, dim = len(rows), rows.shape[-1]
    flat, mean = rows.reshape(count, -1, dim), left.mean.reshape(-1, dim)
    scatter = left.scatter.reshape(-1, dim, dim)
    weight, share = left.count * count / (left.count + count), count / (left.count + count)

    def fill(block: slice) -> None:
        own_mean, own_scatter = _mean_and_scatter(flat[:, block])
        shift = own_mean - mean[block]
        _add_scatter(scatter[block], own_scatter, shift, weight)
        mean[block] += shift * share

    in_blocks(fill, len(mean), bytes_each=max(count, dim) * dim * 8, threads=threads)
    return Moments(
        left.count + count, mean.reshape(left.mean.shape), scatter.reshape(left.scatter.shape)
    )


def without(whole: Moments, some: Moments, *, threads: int = 1) -> Moments:
    """Return the moments of the rows of `whole` that are not in `some`; this undoes `merge`.

    The fewer rows are left, the more digits are lost: some log10(n) where 1 row of n is left.

    Raises:
        ValueError: if nothing is left, or the two have different positions or dimensions.
    """
    if some.count >= whole.count:
        raise ValueError(f"without {some.count} of {whole.count} rows none is left")
    count = whole.count - some.count
    mean = whole.mean + (whole.mean - some.mean) * (some.count / count)
    # `merge` adds the scatters of the rows left and of the others, and a term for their means. With
    # a scatter of zeros for the rows left it gives what has to be subtracted from the whole.
    left = Moments(count, mean, np.zeros_like(whole.scatter))
    added = merge(left, some, threads=threads, reuse=True).scatter
    return Moments(count, mean, np.subtract(whole.scatter, added, out=added))


def covariance_of(
    whitening: Float64[np.ndarray, "... dim dim"], *, threads: int = 1
) -> Float64[np.ndarray, "... dim dim"]:
    """Return the covariance L L^T whose `whitener` is W = L^-1, in float64.

    If W was rounded to float32, the result errs by 2^-24 times the condition of L, relative to the
    covariance itself in every direction (W' Sigma W'^T = I + (W' - W) L + ...). That is far less
    than rounding the covariance would cost, whose condition is the square of that of L.
    """
    flat = whitening.reshape(-1, *whitening.shape[-2:])
    covariance = np.empty_like(flat)

    def fill(block: slice) -> None:
        lower = _inverse(flat[block])
        np.matmul(lower, lower.transpose(0, 2, 1), out=covariance[block])

    in_blocks(fill, len(flat), bytes_each=flat[0].nbytes, threads=threads)
    return covariance.reshape(whitening.shape)


def whitener(
    covariance: Float64[np.ndarray, "... dim dim"], *, threads: int = 1, reuse: bool = False
) -> Float64[np.ndarray, "... dim dim"]:
    """Return the lower triangular W = L^-1 of each position, with covariance = L L^T.

    The inverse of the covariance is W^T W, and |W (x - mean)| is the Mahalanobis distance of x.
    Takes O(dim^3) time a position.

    Args:
        covariance: That of each position, symmetric.
        threads: They change no bit.
        reuse: Write the result into the memory of the covariance, which must not be used then.

    Raises:
        ConfigError: if a covariance is not positive definite; the message says what can be done.
    """
    flat = covariance.reshape(-1, *covariance.shape[-2:])
    whitening = flat if reuse else np.empty_like(flat)

    def fill(block: slice) -> None:
        whitening[block] = _inverse(_factors(flat[block], block.start))

    in_blocks(fill, len(flat), bytes_each=flat[0].nbytes, threads=threads)
    return whitening.reshape(covariance.shape)


def packed(lower: Float64[np.ndarray, "... dim dim"]) -> Float32[np.ndarray, "... entries"]:
    """Return lower triangles as float32, dim (dim + 1) / 2 entries each, row by row."""
    rows, columns = np.tril_indices(lower.shape[-1])
    return lower[..., rows, columns].astype(np.float32)


def unpacked(
    entries: Float32[np.ndarray, "... entries"], dim: int
) -> Float32[np.ndarray, "... dim dim"]:
    """Return the triangles that `packed` was given, in float32, with zeros above.

    Raises:
        ValueError: if there are not dim (dim + 1) / 2 entries.
    """
    rows, columns = np.tril_indices(dim)
    if entries.shape[-1] != len(rows):
        raise ValueError(
            f"{entries.shape[-1]} entries are not a triangle of {dim} dimensions, which has "
            f"{len(rows)}"
        )
    lower = np.zeros((*entries.shape[:-1], dim, dim), np.float32)
    lower[..., rows, columns] = entries
    return lower


def _mean_and_scatter(
    rows: Float32[np.ndarray, "rows positions dim"],
) -> tuple[Float64[np.ndarray, "positions dim"], Float64[np.ndarray, "positions dim dim"]]:
    centred = rows.astype(np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    # numpy computes only half of the product of an array with itself (BLAS syrk), and takes the
    # array as it lies in memory. To gather each position's rows first takes as long as the product.
    by_position = centred.transpose(1, 0, 2)
    return mean, by_position.transpose(0, 2, 1) @ by_position


def _add_scatter(
    scatter: Float64[np.ndarray, "positions dim dim"],
    other: Float64[np.ndarray, "positions dim dim"],
    shift: Float64[np.ndarray, "positions dim"],
    weight: float,
) -> None:
    """Add to a scatter, in place, another one about a mean that is `shift` away.

    Chan et al., (2.1b).
    """
    outer = shift[:, :, np.newaxis] * shift[:, np.newaxis, :]
    outer *= weight
    scatter += outer
    scatter += other


def _inverse(
    lower: Float64[np.ndarray, "positions dim dim"],
) -> Float64[np.ndarray, "positions dim dim"]:
    """Return the inverse of lower triangles, by halves.

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]: Du Croz and Higham, "Stability of
    Methods for Matrix Inversion", IMA J. Numer. Anal. 12, 1992. In numpy's products threads do not
    wait for each other, as they do in scipy's LAPACK.
    """
    dim = lower.shape[-1]
    if dim <= _SMALL_TRIANGLE:
        # LAPACK does not pivot the transpose, because all values below its diagonal are zero.
        return np.linalg.inv(lower.transpose(0, 2, 1)).transpose(0, 2, 1)
    half = dim // 2
    inverse = np.zeros_like(lower)
    inverse[:, :half, :half] = _inverse(lower[:, :half, :half])
    inverse[:, half:, half:] = _inverse(lower[:, half:, half:])
    across = lower[:, half:, :half] @ inverse[:, :half, :half]
    np.matmul(-inverse[:, half:, half:], across, out=inverse[:, half:, :half])
    return inverse


def _factors(
    covariance: Float64[np.ndarray, "positions dim dim"], first: int
) -> Float64[np.ndarray, "positions dim dim"]:
    """Return L of each position; the error names positions from `first`."""
    dim = covariance.shape[-1]
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        # One of the positions has failed: take each alone to see which.
        if len(covariance) > 1:
            each = (_factors(one[np.newaxis], first + n) for n, one in enumerate(covariance))
            return np.concatenate(list(each))
        lower = np.zeros_like(covariance)
    # What the features before it do not explain of each feature's variance. A NaN is not above
    # anything, and so it is not enough.
    pivots = np.diagonal(lower, axis1=1, axis2=2) ** 2
    is_enough = pivots > _ROUNDING * np.diagonal(covariance, axis1=1, axis2=2)
    if is_enough.all():
        return lower
    position = first + int(np.argmin(is_enough.all(axis=1)))
    raise ConfigError(
        f"the covariance of {dim} features at position {position} is not positive definite: the "
        "images do not vary in every direction, or have features that are not finite. Add a "
        "multiple of the identity to it or shrink it more, or fit on more and different images"
    )


def in_blocks(work: Callable[[slice], None], total: int, *, bytes_each: int, threads: int) -> None:
    """Call `work` with blocks of positions, which are the same for any number of threads.

    Args:
        work: Called with the slice of positions of a block.
        total: The number of positions.
        bytes_each: The memory that the work takes for a position.
        threads: Blocks at a time.
    """
    step = max(1, _BLOCK_BYTES // bytes_each)
    blocks = [slice(begin, begin + step) for begin in range(0, total, step)]
    # A BLAS with threads of its own would compete with ours, and its rounding would depend on their
    # number.
    with on_one_thread(), ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, blocks):
            pass


def without_all(
    grams: Float64[np.ndarray, "*locations images images"], count: int, share: float
) -> Float64[np.ndarray, "*locations images"]:
    """Return u^T (Sigma - what the images gave to it)^-1 u of images, u from the mean without them.

    With u_i = x_i - mu of m of N images, and S the scatter of all, leaving the m out moves the mean
    by -sum(u) / (N - m) and takes U (I + 1 1^T / (N - m)) U^T from S. With G = U^T Sigma^-1 U,
    C = `share` (I + 1 1^T / (N - m)) and a_i = e_i + 1 / (N - m), Woodbury's identity gives

        a_i^T (I - G C)^-1 G a_i,

    which for m = 1 is what Sherman and Morrison (1950) say. Time is O(m^3) a location.

    Args:
        grams: G, of each location.
        count: Images that the Gaussians were fitted on, N, more than m.
        share: How much of u u^T is in Sigma: 1 / (N - 1) of a covariance.
    """
    images = grams.shape[-1]
    joint = np.eye(images) + 1 / (count - images)
    # G = H H^T and I - H^T C H are symmetric. What is left of an image is bounded as in the case of
    # one: float32 distances say no more than six digits of it.
    roots, vectors = np.linalg.eigh(grams)
    half = vectors * np.sqrt(np.maximum(0, roots))[..., np.newaxis, :]
    left, axes = np.linalg.eigh(np.eye(images) - share * (half.swapaxes(-1, -2) @ joint @ half))
    along = (half @ axes).swapaxes(-1, -2) @ joint
    squared: np.ndarray = np.sum(along**2 / np.maximum(left, _LEAST)[..., np.newaxis], axis=-2)
    return squared


# Of its own share, that an image's distance is divided by.
_LEAST = 1e-6
