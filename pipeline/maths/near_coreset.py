"""Greedy k-centre selection where a row is covered only by centres from near its place.

Rows have places in a grid, as patch embeddings have. The distance of a row to a centre is that of
their values where the centre's place is at most `radius` patches above or below the row's, and to
its left or right, and infinite elsewhere. Greedy in this distance is the sequence of
`pipeline.maths.coreset`, each pick being the row that is farthest from all centres near it. What
follows from the triangle inequality for distances of values alone, that the covering radius is at
most twice the smallest possible one, does not follow here; the radius that is reached is measured.

So that no place is without a centre, the first centres are at places that cover the grid
(`covering_places`), and greedy goes on from these.

A centre changes bounds near its place only. Rows are kept place by place, each row with its
distance to the nearest centre with which it has been compared, and each place with the centres that
are new to it. Only the place whose farthest row may be the next pick is brought up to date: the
lazy evaluation of greedy. Direct differences decide all comparisons, so that no blocking shows;
ties go to the first place, and of one place to the first row.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Int64

from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.coreset import Progress
from patchlake.pipeline.maths.distances import (
    augment,
    product_error,
    squared_distances,
    squared_norms,
)

# Rows of a place that are compared at once: 2048 x 1024 float32 = 8 MiB.
_BLOCK = 2048
# Up to so many centres are compared directly: a product needs centred rows, which costs as much.
_DIRECTLY = 2


@dataclass(frozen=True)
class PlacedRows:
    """Rows in the order of their places, row by row of the grid."""

    rows: Float32[np.ndarray, "rows dim"]
    # The first row of each place, and the number of all rows.
    begins: Int64[np.ndarray, " cells_1"]
    # Rows and columns of the grid.
    grid: tuple[int, int]

    @classmethod
    def sorted_by(
        cls,
        rows: Float32[np.ndarray, "rows dim"],
        cells: Int64[np.ndarray, " rows"],
        grid: tuple[int, int],
    ) -> "PlacedRows":
        """Return rows that are in the order of the numbers of their places."""
        return cls(rows, np.searchsorted(cells, np.arange(grid[0] * grid[1] + 1)), grid)

    def first_at(
        self, places: Int64[np.ndarray, "some 2"], rng: np.random.Generator
    ) -> Int64[np.ndarray, " some"]:
        """Return a row of each of these places, by chance. Each place must have one."""
        cells = places[:, 0] * self.grid[1] + places[:, 1]
        begins = self.begins[cells]
        chosen: np.ndarray = begins + rng.integers(self.begins[cells + 1] - begins)
        return chosen


@dataclass(frozen=True)
class NearCoreset:
    """Selected rows in order of selection, and the largest distance of any row to one near it."""

    indices: Int64[np.ndarray, " size"]
    radius: float


@dataclass(frozen=True)
class Centres:
    """Rows that cover others, and the numbers of their places."""

    rows: Float32[np.ndarray, "centres dim"]
    cells: Int64[np.ndarray, " centres"]


@dataclass(frozen=True)
class Start:
    """What a selection goes on from."""

    # Rows that are taken in any case.
    first: Int64[np.ndarray, " first"] = field(default_factory=partial(np.empty, 0, np.int64))
    # Centres that there are before, and that need not be rows.
    given: Centres | None = None


def greedy_near(
    placed: PlacedRows,
    size: int,
    radius: int,
    start: Start | None = None,
    progress: Progress | None = None,
) -> NearCoreset:
    """Return `size` rows: some that are named, and then each the farthest from those near it.

    It ends early, with fewer rows, when every row coincides with a centre near it. At most
    O(rows * size * dim) time, times the share of the grid that is near a place. Memory beside
    `placed`: 4 bytes a row and 24 MiB.

    Args:
        placed: Not copied, not changed.
        size: At least as many as are named; 0 is for the radius alone.
        radius: In patches, 0 or more.
        start: Rows and centres that come before all others; without, there are none.
        progress: Called with (selected, size) now and then.

    Raises:
        ValueError: if `size` is smaller than the number of rows that are named.
    """
    start = start or Start()
    if size < len(start.first):
        raise ValueError(f"{size} rows cannot hold the {len(start.first)} that are named")
    # A BLAS with threads of its own would take longer for products of this size.
    with on_one_thread():
        selection = _Selection(placed, radius)
        if start.given is not None:
            for number, cell in enumerate(start.given.cells.tolist()):
                selection.add(start.given.rows[number], cell)
        for row in start.first.tolist():
            selection.pick(row)
        while True:
            row, squared = selection.farthest()
            if len(selection.indices) >= size or squared == 0:
                indices = np.array(selection.indices, np.int64)
                return NearCoreset(indices, float(np.sqrt(np.float32(squared))))
            selection.pick(row)
            if progress is not None and len(selection.indices) % _BLOCK == 0:
                progress(len(selection.indices), size)


def covering_places(covered: Bool[np.ndarray, "y x"], radius: int) -> Int64[np.ndarray, "places 2"]:
    """Return places such that each of the grid that is not covered has one within the radius.

    Of a grid of which nothing is covered these are as few as possible.
    """
    left, (rows, columns) = ~covered, covered.shape
    places = []
    while left.any():
        y, x = np.unravel_index(int(left.argmax()), left.shape)
        place = min(int(y) + radius, rows - 1), min(int(x) + radius, columns - 1)
        places.append(place)
        left[near(place, radius)] = False
    return np.array(places, np.int64).reshape(-1, 2)


def covered_by(
    places: Int64[np.ndarray, "rows 2"], grid: tuple[int, int], radius: int
) -> Bool[np.ndarray, "y x"]:
    """Return which places of a grid have one of these within the radius."""
    covered = np.zeros(grid, bool)
    for y, x in np.unique(places, axis=0).tolist():
        covered[near((y, x), radius)] = True
    return covered


def near(place: tuple[int, int], radius: int) -> tuple[slice, slice]:
    """Return what of a grid is within the radius of a place."""
    y, x = place
    return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)


@dataclass
class _Selection:
    """The rows picked so far, and the squared distance of each row to the nearest of its centres.

    `bounds` are distances to centres that rows have been compared with, and `tops` the largest of
    each place: an upper bound while the place has centres that are new to it.
    """

    placed: PlacedRows
    radius: int
    indices: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows, columns = self.placed.grid
        self._numbers = np.arange(rows * columns).reshape(rows, columns)
        self._bounds = np.full(len(self.placed.rows), np.inf, np.float32)
        has_rows = np.diff(self.placed.begins) > 0
        self._tops = np.where(has_rows, np.inf, -1.0).astype(np.float32)
        self._new: list[list[np.ndarray]] = [[] for _ in range(rows * columns)]

    def farthest(self) -> tuple[int, float]:
        """Return the row that is farthest from the centres near it, and the squared distance."""
        while True:
            cell = int(self._tops.argmax())
            begin = int(self.placed.begins[cell])
            if not self._new[cell]:
                bounds = self._bounds[begin : int(self.placed.begins[cell + 1])]
                return begin + int(bounds.argmax()), float(self._tops[cell])
            self._compare(cell)

    def pick(self, row: int) -> None:
        """Add a row to the selection, and to the centres."""
        self.indices.append(row)
        cell = int(np.searchsorted(self.placed.begins, row, side="right")) - 1
        self.add(self.placed.rows[row], cell)

    def add(self, centre: np.ndarray, cell: int) -> None:
        """Make a centre known to the places near its own."""
        y, x = divmod(cell, self.placed.grid[1])
        for other in self._numbers[near((y, x), self.radius)].ravel().tolist():
            self._new[other].append(centre)

    def _compare(self, cell: int) -> None:
        """Compare the rows of a place with the centres that are new to it."""
        centres = np.stack(self._new[cell])
        self._new[cell] = []
        end = int(self.placed.begins[cell + 1])
        for begin in range(int(self.placed.begins[cell]), end, _BLOCK):
            block = slice(begin, min(begin + _BLOCK, end))
            _lower(self._bounds[block], self.placed.rows[block], centres)
        self._tops[cell] = self._bounds[int(self.placed.begins[cell]) : end].max(initial=-1)


def _lower(bounds: np.ndarray, rows: np.ndarray, centres: np.ndarray) -> None:
    """Lower the bounds of rows to their squared distances to centres that are nearer."""
    if len(centres) <= _DIRECTLY:
        for centre in centres:
            np.minimum(bounds, squared_distances(rows, centre), out=bounds)
        return
    # A product proposes, and what its rounding leaves possible is measured, as in `maths.shard`.
    mean = rows.mean(axis=0)
    augmented, centred = augment(rows, mean), centres - mean
    norms, lengths = squared_norms(augmented[:, :-1]), squared_norms(centred)
    proposed = augmented @ np.concatenate([-2 * centred, lengths[:, None]], axis=1).T
    proposed += norms[:, None]
    error = product_error(norms, bounds, float(lengths.max()), rows.shape[1])
    limit = np.minimum(proposed.min(axis=1) + error, bounds)
    row, centre = np.nonzero(proposed <= (limit + error)[:, None])
    np.minimum.at(bounds, row, squared_distances(rows[row], centres[centre]))
