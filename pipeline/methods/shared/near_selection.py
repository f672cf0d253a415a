"""How a coreset is selected in which each patch is covered by rows from near its own place.

Two ways, chosen from a byte estimate as those of `selection` are:

* `driver`: all rows in this process;
* `partitioned`: within each fragment, rows are selected place by place, so that every row has one
  of its own place within the local radius, and from their union the bank is selected near places.
  A row is then within the sum of the two radii of a row of the bank near its place, which bounds
  what a second pass measures.

No shards are held by workers: a `distributed` selection is refused where it is asked for by name.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.coreset import Progress
from patchlake.pipeline.maths.near_coreset import (
    Centres,
    NearCoreset,
    PlacedRows,
    Start,
    covered_by,
    covering_places,
    greedy_near,
)
from patchlake.pipeline.maths.partitioned import LocalCoreset, unite
from patchlake.pipeline.maths.projection import projected
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.corpus import Corpus
from patchlake.pipeline.methods.shared.selection import Patches, Rows, Selection, Selector

Grid = tuple[int, int]


@dataclass(frozen=True)
class NearSelector:
    """Settings of a selection near places."""

    selector: Selector
    radius: int
    # The most rows of a bank.
    at_most: int

    def select(
        self,
        corpus: Corpus,
        size: int,
        earlier: MemoryBank | None = None,
        progress: Progress | None = None,
    ) -> Selection:
        """Return `size` rows of the corpus, or as many more as it takes to cover each place.

        Args:
            corpus: Its embeddings are (images, rows, columns, dim).
            size: 0 or more.
            earlier: A bank whose rows were selected before, and that these join.
            progress: Called with (selected, size).

        Raises:
            ConfigError: if the rows that cover all places are more than a bank may have.
        """
        projection = self.selector.project(corpus.shapes[self.selector.embedding][-1])
        rows = Patches(corpus, self.selector.embedding, projection)
        height, width, _ = corpus.shapes[self.selector.embedding]
        grid, size = (height, width), min(size, rows.count)
        facts: dict[str, float | str] = {"patches": float(rows.count), "coreset": "all"}
        if size == rows.count:
            return Selection(np.arange(size), facts | {"covering_radius": 0.0})
        given, covered = None, np.zeros(grid, bool)
        if earlier is not None:
            assert earlier.origin is not None
            places, values = earlier.origin[:, 1:], earlier.rows
            covered = covered_by(places, grid, self.radius)
            values = values if projection is None else projected(values, projection)
            given = Centres(values, places[:, 0] * width + places[:, 1])
        lacking = covering_places(covered, self.radius)
        before = 0 if given is None else len(given.cells)
        if before + len(lacking) > self.at_most:
            raise ConfigError(
                f"it takes {before + len(lacking)} rows for one within method.position_radius="
                f"{self.radius} of each of {height} x {width} places, method.max_bank_rows is "
                f"{self.at_most}; raise one of them"
            )
        size = min(max(size, len(lacking)), rows.count)
        strategy = self.selector.choose(rows, corpus)
        task = _Task(self.radius, size, lacking, given, self.selector.seed)
        # Workers hold no shards of places; what they would hold is selected in parts.
        if strategy == "driver":
            placed = PlacedRows.sorted_by(
                rows.by_place(), np.repeat(np.arange(height * width), corpus.images), grid
            )
            found = task.selected(placed, progress)
            cell, image = np.divmod(found.indices, corpus.images)
            indices = image * height * width + cell
            facts |= {"coreset": strategy, "covering_radius": found.radius}
            return Selection(indices, facts)
        share = min(1.0, corpus.memory_budget / 2 / rows.nbytes)
        told = _partitioned(rows, grid, share, task, progress)
        return Selection(told.indices, facts | told.facts)


@dataclass(frozen=True)
class _Task:
    """What is to be selected of rows, wherever they are."""

    radius: int
    size: int
    # Places that need a row of their own.
    lacking: Int64[np.ndarray, "places 2"]
    given: Centres | None
    seed: int

    def selected(self, placed: PlacedRows, progress: Progress | None) -> NearCoreset:
        first = placed.first_at(self.lacking, np.random.default_rng(self.seed))
        start = Start(first, self.given)
        return greedy_near(placed, self.size, self.radius, start, progress)


def _partitioned(
    rows: Patches, grid: Grid, share: float, task: _Task, progress: Progress | None
) -> Selection:
    union, indices, local = unite(rows.each(partial(_select_locally, grid=grid, share=share)))
    cells = indices % (grid[0] * grid[1])
    order = np.argsort(cells, kind="stable")
    placed = PlacedRows.sorted_by(union[order], cells[order], grid)
    found = task.selected(placed, progress)
    chosen = order[found.indices]
    centres = Centres(union[chosen], cells[chosen])
    if task.given is not None:
        centres = Centres(
            np.concatenate([task.given.rows, centres.rows]),
            np.concatenate([task.given.cells, centres.cells]),
        )
    measure = partial(_radius, grid=grid, radius=task.radius, centres=centres)
    facts: dict[str, float | str] = {
        "coreset": "partitioned",
        "covering_radius": max(rows.each(measure)),
        "radius_bound": local + found.radius,
    }
    return Selection(indices[chosen], facts)


def _select_locally(rows: Rows, *, grid: Grid, share: float) -> LocalCoreset:
    """Return rows of one fragment of which each of its rows has one at its own place."""
    placed, images = _by_place(rows, grid)
    cells = grid[0] * grid[1]
    first = np.arange(cells) * images
    size = min(len(rows), max(cells, int(np.ceil(len(rows) * share))))
    found = greedy_near(placed, size, 0, Start(first))
    cell, image = np.divmod(found.indices, images)
    return LocalCoreset(placed.rows[found.indices], image * cells + cell, found.radius, len(rows))


def _radius(rows: Rows, *, grid: Grid, radius: int, centres: Centres) -> float:
    placed, _ = _by_place(rows, grid)
    return greedy_near(placed, 0, radius, Start(given=centres)).radius


def _by_place(rows: Rows, grid: Grid) -> tuple[PlacedRows, int]:
    """Return a fragment's rows in the order of their places, and how many each place has."""
    cells = grid[0] * grid[1]
    images = len(rows) // cells
    of_place = rows.reshape(images, cells, -1).swapaxes(0, 1).reshape(len(rows), -1)
    placed = PlacedRows(np.ascontiguousarray(of_place), np.arange(cells + 1) * images, grid)
    return placed, images
