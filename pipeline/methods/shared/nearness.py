"""A memory bank of which a patch is compared with the rows from near its own place only.

What a score needs of it beside the rows, the places that they are from and the grid of these, is in
the state of a model, and so part of its digest; provenance, where the same places stand beside the
images, is not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.positioned import PositionedSearch, reaches_of
from patchlake.pipeline.maths.near_coreset import covered_by
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.corpus import Arrays

# The fact that says within which radius a group's patches are compared.
POSITION_RADIUS = "position_radius"
_PLACES, _GRID = "places", "grid"


@dataclass(frozen=True)
class Nearness:
    """Within how many patches of its own place, on which grid, a patch is compared."""

    radius: int
    # Rows and columns.
    grid: tuple[int, int]

    @classmethod
    def on(cls, grid: tuple[int, int], radius: int | None) -> "Nearness | None":
        """Return what a radius means on a grid; None where all of it is within the radius."""
        return None if radius is None or radius >= max(grid) - 1 else cls(radius, grid)

    @classmethod
    def stored(cls, state: Arrays, radius: int | None) -> "Nearness | None":
        """Return that of a stored model with this radius; None where places do not matter."""
        if radius is None or _GRID not in state:
            return None
        rows, columns = state[_GRID].tolist()
        return cls(radius, (rows, columns))

    def state(self, bank: MemoryBank) -> Arrays:
        """Return what a model keeps of a bank beside its rows; `search` reads it."""
        assert bank.origin is not None
        places = bank.origin[:, 1:].astype(np.int32)
        return {_PLACES: places, _GRID: np.array(self.grid, np.int32)}

    def facts(self, bank: MemoryBank) -> dict[str, float | str]:
        """Return the radius, and how many places have no row of the bank within it."""
        assert bank.origin is not None
        covered = covered_by(bank.origin[:, 1:], self.grid, self.radius)
        return {
            POSITION_RADIUS: float(self.radius),
            "uncovered_places": float(np.count_nonzero(~covered)),
        }

    def search(self, rows: Float32[np.ndarray, "bank dim"], state: Arrays) -> PositionedSearch:
        """Return the search over the rows of a stored model.

        Raises:
            ValueError: if the places that were stored do not fit the rows.
        """
        places = state[_PLACES].astype(np.int64)
        return PositionedSearch.over(rows, places, self.grid, self.radius)

    def farthest(
        self,
        gone: Float32[np.ndarray, "gone dim"],
        were: Int64[np.ndarray, "before 2"],
        is_gone: Int64[np.ndarray, " gone"],
        left: Float32[np.ndarray, "left dim"],
    ) -> float:
        """Return how far rows that are gone are, at the most, from what takes their place.

        At each place where such a row was among those that patches are compared with, that is its
        distance to the nearest row that is left for this place. O(gone * places near one).

        Args:
            gone: The rows.
            were: The places of all rows of the bank before.
            is_gone: The numbers of those that are gone.
            left: The other rows, in their order.
        """
        search = PositionedSearch.over(
            left, np.delete(were, is_gone, axis=0), self.grid, self.radius
        )
        reaches = reaches_of(were, self.grid, self.radius, 1)
        grid = np.moveaxis(np.indices(self.grid), 0, -1)
        farthest = 0.0
        for row, place in zip(gone, were[is_gone], strict=True):
            compared = np.argwhere(np.abs(grid - place).max(axis=-1) <= reaches)
            queries = np.broadcast_to(row, (len(compared), len(row)))
            distances, _ = search.nearest_at(np.ascontiguousarray(queries), compared, 1)
            farthest = max(farthest, float(distances.max(initial=0)))
        return farthest
