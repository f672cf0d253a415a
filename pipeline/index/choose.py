"""The fastest exact search over a bank.

How it prunes is found by timing a few hundred queries when the bank is loaded; whether it does, by
timing those that come (`pipeline.index.pace`).
"""

from collections import defaultdict
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.bounds import principal_directions, products_are_exact
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.pace import Pace
from patchlake.pipeline.index.pruned import PrunedSearch

# 0 is dense; more directions prune more and cost more.
COMPONENTS = (32, 64, 128, 256)
# Queries timed, and bank rows that they are timed on: 512 x 8192 x 384 x 2 flop = 3.2 GFLOP,
# 35 ms on one core.
_QUERIES, _ROWS = 512, 8192
# Below, a search takes less than a millisecond a hundred queries whatever is chosen.
_FEWEST_ROWS = 512
_REPEATS = 5
# What takes twice as long as the fastest is left out after two turns; the first is slow for all,
# with threads to start and kernels to be made. Less than that the queries to come may make up for.
_HOPELESS, _TURNS_OF_ALL = 2, 2
# Of what is about as fast in the trial the most components are taken: too many cost a fifth more,
# too few let too much of a defective image through, which then takes as long as the dense search.
_CLOSE = 1.15


@dataclass(frozen=True)
class ChosenSearch:
    """The dense search and a pruned one, whichever has been the faster. Build with `search_over`.

    Both give the same results to the bit.
    """

    dense: ExactSearch
    pruned: PrunedSearch | None
    # By the number of neighbours, which changes what can be pruned.
    _paces: defaultdict[int, Pace] = field(default_factory=lambda: defaultdict(Pace), repr=False)

    @property
    def components(self) -> int:
        """Principal directions of the pruned search, 0 where there is only the dense one."""
        return self.pruned.components if self.pruned else 0

    @property
    def size(self) -> int:
        """Number of bank rows."""
        return self.dense.size

    def vectors(self, rows: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows dim"]:
        """Return bank rows."""
        return self.dense.vectors(rows)

    def nearest(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Return what `ExactSearch.nearest` returns, to the bit, and raise what it raises."""
        if self.pruned is None or len(queries) == 0:
            return self.dense.nearest(queries, k, ignore=ignore)
        pace = self._paces[k]
        prunes = pace.prunes()
        start = perf_counter()
        found = (self.pruned if prunes else self.dense).nearest(queries, k, ignore=ignore)
        pace.note((perf_counter() - start) / len(queries), pruned=prunes)
        return found


def search_over(
    dense: ExactSearch,
    sample: Float32[np.ndarray, "sample dim"] | None = None,
    *,
    threads: int | None = None,
) -> ChosenSearch:
    """Return a search over a dense one's bank, with the components that were fastest in a trial.

    All give the same results to the bit. Where not even the best is near the dense search in the
    trial, there is only that.

    Args:
        dense: What the others are held against; its arrays are read only.
        sample: Queries as they will come, at least one. Without, bank rows that are left out of the
            bank: a row of a greedy coreset is at least the covering radius from all others, so it
            is a patch that is harder to search for than normal ones. A row with some noise would be
            its own neighbour, so near that everything else is pruned.
        threads: Blocks of queries at a time; None is as many as torch would use.
    """
    bank = dense.bank
    candidates = [count for count in COMPONENTS if count < bank.shape[1]]
    if len(bank) < _FEWEST_ROWS or not candidates or not products_are_exact():
        return ChosenSearch(dense, None)
    principal, _ = principal_directions(bank)
    best = _most_hopeful(bank, sample, candidates, threads, principal)
    if best == 0:
        return ChosenSearch(dense, None)
    pruned = PrunedSearch.over(dense, best, threads=threads, principal=principal)
    return ChosenSearch(dense, pruned)


def _most_hopeful(
    bank: np.ndarray,
    sample: np.ndarray | None,
    candidates: list[int],
    threads: int | None,
    principal: np.ndarray,
) -> int:
    # A part of the bank: a larger one prunes a larger share, so what wins here wins there too.
    rows = np.ascontiguousarray(bank[:: -(-len(bank) // _ROWS)])
    ignore = None
    if sample is None:
        ignore = np.arange(0, len(rows), -(-len(rows) // min(_QUERIES, len(rows) // 4)))
        sample = rows[ignore]
    sample = np.ascontiguousarray(sample[:: -(-len(sample) // _QUERIES)])
    dense = ExactSearch.over(rows)
    searches = {
        count: PrunedSearch.over(dense, count, threads=threads, principal=principal)
        for count in (0, *candidates)
    }
    # In turns, and the least of each, so that another process delays all alike.
    seconds = dict.fromkeys(searches, np.inf)
    for turn in range(_REPEATS):
        for count, search in searches.items():
            if turn >= _TURNS_OF_ALL and seconds[count] > _HOPELESS * min(seconds.values()):
                continue
            start = perf_counter()
            search.nearest(sample, 1, ignore=ignore)
            seconds[count] = min(seconds[count], perf_counter() - start)
    least = min(seconds[count] for count in candidates)
    best = max(count for count in candidates if seconds[count] <= _CLOSE * least)
    return best if seconds[best] < _HOPELESS * seconds[0] else 0
