"""How a coreset is selected from a corpus of any size: three ways, chosen from a byte estimate.

* `driver`: all rows in this process;
* `distributed`: rows held by the workers, the same indices as `driver`;
* `partitioned`: rows are read part by part, an approximation with a proven bound.

Of a coreset of all rows (`all`) nothing is selected.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from patchlake.pipeline.maths.coreset import Progress, extend, greedy, select, select_further
from patchlake.pipeline.maths.partitioned import extended, partitioned
from patchlake.pipeline.maths.projection import gaussian_projection, projected
from patchlake.pipeline.maths.shard import Farthest, Shard
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus
from patchlake.pipeline.methods.shared.workers import Held, T

log = logging.getLogger("patchlake")

Strategy = Literal["auto", "driver", "distributed", "partitioned"]
# Dimensions to select in; None: all of the rows'.
Projection = Annotated[int, Field(ge=1)] | Literal["gaussian"] | None
Rows = Float32[np.ndarray, "rows dim"]

# Of "gaussian", as in the authors' code.
_GAUSSIAN = 128
# Candidates of all shards together in one round; a small shard still offers a few.
_POOL, _LEAST_POOL = 4096, 128
# Memory of a row beside its values: a bound, and two int32 of the centres.
_ROW_STATE_BYTES = 12


@dataclass(frozen=True)
class Selection:
    """The selected rows, numbered through the corpus, and how they were selected."""

    indices: Int64[np.ndarray, " size"]
    facts: dict[str, float | str]


@dataclass(frozen=True)
class Selector:
    """Settings of a selection."""

    strategy: Strategy
    projection: Projection
    seed: int
    # The array, by name, whose last axis are the rows.
    embedding: str = "patches"

    def select(self, corpus: Corpus, size: int, progress: Progress | None = None) -> Selection:
        """Return `size` rows of the corpus, whose embeddings are (images, rows, columns, dim)."""
        projection = self.project(corpus.shapes[self.embedding][-1])
        rows = Patches(corpus, self.embedding, projection)
        if size >= rows.count:
            # Greedy would take all of them, too, in quadratic time.
            facts: dict[str, float | str] = {"patches": float(rows.count), "coreset": "all"}
            return Selection(np.arange(rows.count), facts | {"covering_radius": 0.0})
        strategy = self.choose(rows, corpus)
        facts = {"patches": float(rows.count), "coreset": strategy}
        if strategy == "partitioned":
            # The union may fill half of what a process may hold.
            share = min(1.0, corpus.memory_budget / 2 / rows.nbytes)
            chosen = partitioned(rows, size, share, threads=corpus.threads, progress=progress)
            facts |= {"covering_radius": chosen.radius, "radius_bound": chosen.bound}
            return Selection(chosen.indices, facts)
        start = int(np.random.default_rng(self.seed).integers(rows.count))
        if strategy == "driver":
            selected = greedy(
                rows.gather(), size, start=start, threads=corpus.threads, progress=progress
            )
        else:
            with rows.held() as shards:
                first = np.concatenate(shards.ask(partial(Shard.take, index=start)))[0]
                selected = select(HeldRows(shards), first, start, size, progress)
        facts["covering_radius"] = float(selected.radii[-1])
        return Selection(selected.indices, facts)

    def extend(
        self, corpus: Corpus, centres: Rows, size: int, progress: Progress | None = None
    ) -> Selection:
        """Return at most `size` rows of the corpus more than the centres given: greedy goes on.

        The facts are of the rows of the corpus alone.
        """
        projection = self.project(centres.shape[1])
        given = centres if projection is None else projected(centres, projection)
        rows = Patches(corpus, self.embedding, projection)
        strategy, size = self.choose(rows, corpus), min(size, rows.count)
        facts: dict[str, float | str] = {"patches": float(rows.count), "coreset": strategy}
        if strategy == "partitioned":
            share = min(1.0, corpus.memory_budget / 2 / rows.nbytes)
            chosen = extended(rows, given, size, share, threads=corpus.threads)
            return Selection(chosen.indices, facts | {"covering_radius": chosen.radius})
        if strategy == "driver":
            found = extend(rows.gather(), given, size, threads=corpus.threads, progress=progress)
        else:
            with rows.held() as shards:
                found = select_further(HeldRows(shards), given, size, progress)
        return Selection(found.indices, facts | {"covering_radius": float(found.radii[-1])})

    def project(self, dim: int) -> np.ndarray | None:
        """Return the projection in which rows of `dim` dimensions are selected; None: none."""
        count = _GAUSSIAN if self.projection == "gaussian" else self.projection
        if count is None or count >= dim:
            return None
        return gaussian_projection(dim, count, np.random.default_rng(self.seed))

    def choose(self, rows: "Patches", corpus: Corpus) -> Strategy:
        """Return where the rows are selected, and say why."""
        budget, needed = corpus.memory_budget, rows.nbytes + rows.count * _ROW_STATE_BYTES
        strategy: Strategy = self.strategy
        if strategy == "auto":
            strategy = "driver" if needed <= budget else "partitioned"
            # Workers load their share as it is stored, and project it then.
            if budget < needed and rows.stored_bytes <= budget * corpus.processes:
                strategy = "distributed"
        log.info(
            "coreset: %d patches of %d dimensions are %.2f GiB, memory_budget is %.2f GiB for each "
            "of %d processes; strategy %s%s",
            rows.count,
            rows.dim,
            needed / 2**30,
            budget / 2**30,
            corpus.processes,
            strategy,
            "" if self.strategy == "auto" else " (as set)",
        )
        return strategy


class Patches:
    """A corpus as rows: one patch each, projected if so wished."""

    def __init__(self, corpus: Corpus, name: str, projection: np.ndarray | None) -> None:
        self._corpus = corpus
        self._name = name
        self._projection = projection
        height, width, dim = corpus.shapes[name]
        self.count = corpus.images * height * width
        self.dim = dim if projection is None else projection.shape[1]
        self.stored_bytes = self.count * (dim * 4 + _ROW_STATE_BYTES)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.count * self.dim * 4

    def gather(self) -> Rows:
        """Return the rows in the order of their images."""
        rows = np.empty((self.count, self.dim), np.float32)
        filled = 0
        for embeddings in self._corpus.embeddings():
            part = _as_rows(embeddings[self._name], self._projection)
            rows[filled : filled + len(part)] = part
            filled += len(part)
        return rows

    def by_place(self) -> Rows:
        """Return the rows in the order of their places, and at each place of their images."""
        height, width, _ = self._corpus.shapes[self._name]
        rows = np.empty((height * width, self._corpus.images, self.dim), np.float32)
        filled = 0
        for embeddings in self._corpus.embeddings():
            part = _as_rows(embeddings[self._name], self._projection)
            images = len(embeddings[self._name])
            of_place = part.reshape(images, -1, self.dim).swapaxes(0, 1)
            rows[:, filled : filled + images] = of_place
            filled += images
        return rows.reshape(-1, self.dim)

    def each(self, work: Callable[[Rows], T]) -> Iterator[T]:
        """Yield the result of `work` on the rows of each fragment."""
        on_rows = partial(_on_rows, name=self._name, projection=self._projection, work=work)
        return self._corpus.each(on_rows)

    def held(self) -> AbstractContextManager[Held[Shard]]:
        """Start shards of the rows on the workers."""
        members = self._corpus.processes
        pool = max(_LEAST_POOL, _POOL // members)
        start = partial(_start_shard, name=self._name, projection=self._projection, pool=pool)
        return self._corpus.held(start, members)


@dataclass(frozen=True)
class HeldRows:
    """Shards that workers hold, as the rows of a selection."""

    shards: Held[Shard]
    # Kept for a shard whose worker dies: started again, it knows of none.
    asked: list[np.ndarray] = field(default_factory=list)

    def farthest(
        self, centres: Float32[np.ndarray, "new dim"], threshold: float
    ) -> Sequence[Farthest]:
        """Return each shard's answer."""
        answers = self._ask(sum(map(len, self.asked)), centres, threshold)
        self.asked.append(centres)
        if any(answer is None for answer in answers):
            # Those that lack nothing have nothing to add, and answer again.
            answers = self._ask(0, np.concatenate(self.asked), threshold)
        return [answer for answer in answers if answer is not None]

    def _ask(self, first: int, centres: np.ndarray, threshold: float) -> Sequence[Farthest | None]:
        return self.shards.ask(
            partial(Shard.farthest_since, first=first, centres=centres, threshold=threshold)
        )


def gather_rows(
    corpus: Corpus, indices: Int64[np.ndarray, " size"], embedding: str = "patches"
) -> Rows:
    """Return the patches of the given numbers, in their order.

    One pass over the corpus on the workers; only the wanted rows come back.
    """
    gathered = np.empty((len(indices), corpus.shapes[embedding][-1]), np.float32)
    for positions, rows in corpus.each(partial(_take, name=embedding, indices=indices)):
        gathered[positions] = rows
    return gathered


def _take(
    embeddings: Arrays, first: int, *, name: str, indices: np.ndarray
) -> tuple[np.ndarray, Rows]:
    rows = _as_rows(embeddings[name], None)
    local = indices - first * (len(rows) // len(embeddings[name]))
    positions = np.flatnonzero((local >= 0) & (local < len(rows)))
    return positions, rows[local[positions]]


def _on_rows(
    embeddings: Arrays,
    first: int,  # noqa: ARG001 - parts are numbered by whoever merges them
    *,
    name: str,
    projection: np.ndarray | None,
    work: Callable[[Rows], T],
) -> T:
    return work(_as_rows(embeddings[name], projection))


def _start_shard(
    embeddings: Arrays, first: int, *, name: str, projection: np.ndarray | None, pool: int
) -> Shard:
    rows = _as_rows(embeddings[name], projection)
    return Shard(rows, pool=pool, offset=first * (len(rows) // max(1, len(embeddings[name]))))


def _as_rows(embedding: np.ndarray, projection: np.ndarray | None) -> Rows:
    rows = embedding.reshape(-1, embedding.shape[-1])
    return rows if projection is None else projected(rows, projection)
