"""The fastest exact search over a bank, found by timing a few hundred queries when it is loaded."""

from time import perf_counter

import numpy as np
from jaxtyping import Float32

from pipeline.index.bounds import principal_directions, products_are_exact
from pipeline.index.exact import ExactSearch
from pipeline.index.pruned import PrunedSearch

# 0 is dense; more directions prune more and cost more.
COMPONENTS = (32, 64, 128, 256)
# Queries timed, and bank rows that they are timed on: 512 x 8192 x 384 x 2 flop = 3.2 GFLOP,
# 35 ms on one core.
_QUERIES, _ROWS = 512, 8192
# Below, a search takes less than a millisecond a hundred queries whatever is chosen.
_FEWEST_ROWS = 512
_REPEATS = 5
# What takes twice as long as the fastest is left out after two turns; the first is slow for all,
# with threads to start and kernels to be made.
_HOPELESS, _TURNS_OF_ALL = 2, 2
# A quarter faster in the trial: images with defects take up to a quarter longer than normal ones.
_MARGIN = 0.8


def search_over(
    bank: Float32[np.ndarray, "bank dim"],
    sample: Float32[np.ndarray, "sample dim"] | None = None,
    *,
    threads: int | None = None,
) -> PrunedSearch:
    """Return a search over the bank with the number of components that was fastest.

    All of them give the same results to the bit; `components` says which it is, 0 for dense.

    Args:
        bank: float32 rows.
        sample: Queries as they will come. Without, bank rows that are left out of the bank: a row
            of a greedy coreset is at least the covering radius from all others, so it is a patch
            that is harder to search for than the normal ones. A row with a little noise would be
            its own neighbour, so near that everything else is pruned.
        threads: Blocks of queries at a time; None is as many as torch would use.
    """
    bank = np.ascontiguousarray(bank)
    dense = ExactSearch.over(bank)
    candidates = [count for count in COMPONENTS if count < bank.shape[1]]
    if len(bank) < _FEWEST_ROWS or not candidates or not products_are_exact():
        return PrunedSearch.over(dense, 0, threads=threads)
    principal = principal_directions(bank)
    best = _fastest(bank, sample, candidates, threads, principal)
    return PrunedSearch.over(dense, best, threads=threads, principal=principal)


def _fastest(
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
    best = min(candidates, key=seconds.__getitem__)
    return best if seconds[best] < _MARGIN * seconds[0] else 0
