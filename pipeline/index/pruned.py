"""Exact nearest neighbours with most of the bank ruled out by a lower bound in few dimensions.

With V the leading principal directions of the bank and x' = x - mean, split x' into V x' and the
rest, of length r(x). Then |q - c|^2 >= |V q' - V c'|^2 + (r(q) - r(c))^2: the first part loses
nothing, and two rests differ by at least the difference of their lengths. Appending r as one more
coordinate makes that bound a squared distance in p + 1 dimensions, a product of p + 2.

1. *Bound*: the product, for a block of queries and a tile of the bank that stays in the cache.
2. *Limit*: the rows with the lowest bounds are measured; the k-th distance so far is the limit.
3. *Sieve*: pairs within the limit are bounded again with twice the directions, and what remains
   is measured in float32, pair by pair.
4. What can be among the nearest ends in `exact.measured`, as in the dense search: the same bits.

A block of which too many pairs survive goes to the dense search, so the number of components can
change the time and nothing else.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import faiss
import numpy as np
from jaxtyping import Float32, Float64, Int64
from threadpoolctl import ThreadpoolController

from pipeline.index.exact import ExactSearch, check_asked, measured

# Half the distance from 1 to the next float32: the relative error of one rounding.
_UNIT = 2.0**-24
# Queries x bank rows of one product: 256 x 4096 float32 = 4 MiB a thread, which stays in the
# cache for the passes over it. A whole image by 10,000 rows (31 MB) makes them 4 times slower.
_QUERIES, _TILE = 256, 4096
# One of so many columns of a tile is a candidate for the limit where k > 1.
_GROUP = 16
# Shares of the pairs at which a block goes dense. A pair costs 8 ns in the dense product of 384
# dimensions, 15 ns in the sieve and 100 to 200 ns when it is measured: at these shares 2 to 4 ns.
_MANY_SIEVED, _MANY_MEASURED = 1 / 4, 1 / 50


@dataclass(frozen=True)
class PrunedSearch:
    """Searches a memory bank of float32 rows. Build it with `over`."""

    bank: Float32[np.ndarray, "bank dim"]
    components: int
    dense: ExactSearch
    _bounds: "_Bounds"

    @classmethod
    def over(
        cls, bank: Float32[np.ndarray, "bank dim"], components: int, dense: ExactSearch
    ) -> "PrunedSearch":
        """Return a search over the bank.

        Args:
            bank: Kept, not copied.
            components: Principal directions of the bound; at most dim. 0 is the dense search.
            dense: Over the same bank.
        """
