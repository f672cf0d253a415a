"""Arrays by name as safetensors: the bytes of partial results, states and galleries."""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import load, save


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays as a safetensors file; equal arrays give equal bytes.

    safetensors 0.8 writes the memory of an array as it lies, so that one in Fortran order, as fancy
    indexing returns them, would come back scrambled, without a word. (`ascontiguousarray` would do,
    but makes a vector of a number.)
    """
    content: bytes = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    return content


def from_bytes(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, by name; as it is read they come in any order."""
    return dict(sorted(load(content).items()))
