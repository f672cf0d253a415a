"""The fastest exact search over a bank: the dense one, or a pruned one.

How many components the pruned search uses is decided when the bank is loaded, by timing a few
hundred queries. Which of the two searches takes a call is decided call by call, from the times of
earlier calls (`pipeline.index.pace`), of which the first are cut off a larger one: a few hundred
queries each.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.index.bounds import principal_directions
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.pace import Pace
from patchlake.pipeline.index.pruned import PrunedSearch

# Numbers of components that are tried. More of them rule out more rows and cost more.
COMPONENTS = (32, 64, 128, 256)
# Queries in the trial, and bank rows that they are searched in: 512 x 8192 x 384 x 2 flop = 3.2
# GFLOP for the dense search, 35 ms on one core.
_QUERIES, _ROWS = 512, 8192
# In a smaller bank, a hundred queries take less than a millisecond whatever is chosen.
_FEWEST_ROWS = 512
# Each search is timed so often, all in turns, and its least time counts.
_TURNS = 5
# A search that takes more than twice as long as the fastest is not timed again after two turns, of
# which the first is slow for all because it starts threads and makes kernels. And a pruned search
# that takes twice as long as the dense one is not used. If it is slower by less than that, it may
# still be the faster one on the queries to come.
_HOPELESS, _TURNS_OF_ALL = 2, 2
# Searches within this factor of the fastest count as equally fast, and the one with the most
# components is taken. Too many components cost a fifth more time; with too few, too many pairs of a
# defective image are left, so that it takes as long as in the dense search.
_CLOSE = 1.15


@dataclass(frozen=True)
class ChosenSearch:
    """Gives each call to the dense search or to a pruned one. Build it with `search_over`.

    Both give the same results to the bit; the one that has been faster takes the call.
    """

    dense: ExactSearch
    pruned: PrunedSearch | None
    # By k, the number of neighbours: on it depends how much is ruled out.
    _paces: defaultdict[int, Pace] = field(default_factory=lambda: defaultdict(Pace), repr=False)

    @property
    def components(self) -> int:
        """Components of the pruned search; 0 where there is only the dense one."""
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
        found, begin = [], 0
        while begin < len(queries):
            end = begin + self.pruned.tried if pace.tries else len(queries)
            some = queries[begin:end]
            prunes = pace.prunes()
            start = perf_counter()
            found.append((self.pruned if prunes else self.dense).nearest(some, k, ignore=ignore))
            pace.note((perf_counter() - start) / len(some), pruned=prunes)
            begin = end
        distances, rows = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(rows)


def search_over(
    dense: ExactSearch,
    sample: Float32[np.ndarray, "sample dim"] | None = None,
    *,
    threads: int | None = None,
) -> ChosenSearch:
    """Return a search over the bank of a dense search.

    Pruned searches with several numbers of components are timed in a trial, and the fastest is kept
    beside the dense search. Where even that takes twice as long as the dense search, only the dense
    search is kept. All give the same results to the bit.

    Args:
        dense: The dense search; it is not changed.
        sample: Queries for the trial, at least one, like those that will come. None: rows of the
            bank, which are left out of it for the trial. A row of a greedy coreset is at least the
            covering radius away from all others, so such a query is harder than a normal patch. A
            bank row with some noise would not do: its own row would be so near that all others
            were ruled out.
        threads: Blocks of queries searched at a time; None is as many as torch would use.
    """
    bank = dense.bank
    candidates = [count for count in COMPONENTS if count < bank.shape[1]]
    if len(bank) < _FEWEST_ROWS or not candidates:
        return ChosenSearch(dense, None)
    principal, _ = principal_directions(bank)
    best = _fastest_components(bank, sample, candidates, threads, principal)
    if best == 0:
        return ChosenSearch(dense, None)
    pruned = PrunedSearch.over(dense, best, threads=threads, principal=principal)
    return ChosenSearch(dense, pruned)


def _fastest_components(
    bank: np.ndarray,
    sample: np.ndarray | None,
    candidates: list[int],
    threads: int | None,
    principal: np.ndarray,
) -> int:
    """Return the number of components that is fastest in a trial; 0 for the dense search alone."""
    # Some rows of the bank: of a larger bank a larger share is ruled out, so that a pruned search
    # that is fast here is faster there.
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
    # In turns, and the least time of each, so that another process delays all of them alike.
    seconds = dict.fromkeys(searches, np.inf)
    for turn in range(_TURNS):
        for count, search in searches.items():
            if turn >= _TURNS_OF_ALL and seconds[count] > _HOPELESS * min(seconds.values()):
                continue
            start = perf_counter()
            search.nearest(sample, 1, ignore=ignore)
            seconds[count] = min(seconds[count], perf_counter() - start)
    least = min(seconds[count] for count in candidates)
    best = max(count for count in candidates if seconds[count] <= _CLOSE * least)
    return best if seconds[best] < _HOPELESS * seconds[0] else 0
