"""The interface of every search of this package, and all that a method knows of one."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

if TYPE_CHECKING:
    # It imports torch, 3 s of a process that only reads or writes tables.
    from torch import Tensor


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


@runtime_checkable
class DeviceSearch(Search, Protocol):
    """A search on a GPU, which also takes queries that are there."""

    def nearest_on_device(
        self, queries: "Tensor", k: int
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `nearest` returns."""
