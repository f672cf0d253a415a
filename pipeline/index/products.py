"""Exact products of bytes, by what the processor is fast at.

torch has a product of bytes that is not public. Three things can be wrong with it: it may be
absent; processors without VNNI may add products in pairs in 16 bits, which overflow; and where
torch has no kernel for the processor it is a plain loop. On a core of a Zen 3, which has AVX2 and
no VNNI, that loop does 1.2 GFLOP/s where float32 does 48. On a Zen 4, which has VNNI, bytes do 400
and float32 95.

float32 has 24 bits and so counts exactly up to 2^24 = 16.8 M, which is 1040 products of 127 x 127:
the same integers come of a product of float32, whatever the order of its sums; also where torch was
told to round what it multiplies to bfloat16 or TF32, which hold all bytes.
"""

from collections.abc import Callable
from functools import cache
from threading import Lock
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Int8, Int32

# Coordinates of which float32 adds the products of bytes exactly: 2^24 // 127^2.
_MOST_COORDINATES = 1040
# Of the trial: 128 x 2048 x 129 x 2 = 68 MFLOP, which take 60 ms in the plain loop.
_TRIAL = 128, 2048, 129
_TURNS = 3
_TRYING = Lock()

Product = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def multiply(
    queries: Int8[np.ndarray, "queries coordinates"],
    tile: Int8[np.ndarray, "tile coordinates"],
    out: Int32[np.ndarray, "queries tile"],
) -> None:
    """Write queries @ tile.T to `out`, in exact integers. O(queries * tile * coordinates).

    Args:
        queries: Bytes in -127..127, of at most 1040 coordinates.
        tile: As many coordinates.
        out: Contiguous.
    """
    assert queries.shape[1] <= _MOST_COORDINATES
    # One thread tries them, and alone: the others wait for what it finds.
    with _TRYING:
        product = _fastest()
    product(queries, tile, out)


def of_bytes(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
    """Write the product by torch's own of bytes: what it gives is up to the processor."""
    torch._int_mm(  # noqa: SLF001 - torch has no public product of bytes on a CPU
        torch.from_numpy(queries), torch.from_numpy(tile).t(), out=torch.from_numpy(out)
    )


def of_floats(queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> None:
    """Write the product by one of float32, exactly."""
    integers = torch.from_numpy(out)
    # In the same memory: by an array of its own, of 5 MB, it took a quarter longer.
    floats = integers.view(torch.float32)
    torch.mm(torch.from_numpy(queries).float(), torch.from_numpy(tile).float().t(), out=floats)
    integers.copy_(floats)


@cache
def _fastest() -> Product:
    """Return the product of bytes where it is exact and the faster of the two, by trying both."""
    return of_bytes if pays(of_bytes) else of_floats


def pays(product: Product) -> bool:
    """Return whether a product is there, exact, and faster than `of_floats`, by trying it."""
    generator = np.random.default_rng(0)
    rows, width, coordinates = _TRIAL
    queries = generator.integers(-127, 128, (rows, coordinates)).astype(np.int8)
    tile = generator.integers(-127, 128, (width, coordinates)).astype(np.int8)
    # Sums of 16 bits overflow with the largest bytes.
    queries[:2], tile[:2] = 127, -127
    queries[2:4], tile[2:4] = -127, 127
    expected, found = (np.empty((rows, width), np.int32) for _ in range(2))
    of_floats(queries, tile, expected)
    try:
        product(queries, tile, found)
    except (AttributeError, TypeError, RuntimeError):
        return False
    if not (found == expected).all():
        return False
    # In turns, and the least time of each, so that another process delays both alike.
    turns = [
        [_seconds(one, queries, tile, found) for one in (product, of_floats)] for _ in range(_TURNS)
    ]
    least, of_float32 = np.min(turns, axis=0)
    return bool(least < of_float32)


def _seconds(product: Product, queries: np.ndarray, tile: np.ndarray, out: np.ndarray) -> float:
    start = perf_counter()
    product(queries, tile, out)
    return perf_counter() - start
