"""The interface of every search of this package, and all that a method knows of one."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64


@runtime_checkable
class Search(Protocol):
    """Nearest neighbours in the group's memory bank."""

    @property
    def size(self) -> int:
        """Number of bank rows."""

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return L2 distances and bank rows of the k nearest neighbours, nearest first.

        `ignore` are bank rows to leave out.
        """

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
