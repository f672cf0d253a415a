"""Find out which of two searches is the faster one, while both are in use.

The caller times each call and notes what it took per query. The first eight calls are a trial, in
which both searches take turns. After that, each call goes to the search whose last three times have
the smaller median, except for one call in 256, which goes to the other one.
"""

from collections import deque
from statistics import median

# The first call of each search is not counted: it is slow, because it starts threads and makes
# kernels. The last three times of each search are compared.
_UNCOUNTED, _COMPARED = 2, 3
_TRIAL = _UNCOUNTED + 2 * _COMPARED
# One in so many calls goes to the slower search, in case the images or the load of the machine have
# changed. Where that takes 8 times as long, this costs 3 %.
_RETRY = 256


class Pace:
    """Decides for each call whether the pruned or the dense search takes it.

    How much of a bank the bounds rule out depends on the queries, which nobody knows yet when the
    bank is loaded. Both searches give the same results to the bit, so that the decision changes the
    time and nothing else.
    """

    def __init__(self) -> None:
        self._calls = 0
        # The last times by search: True is the pruned one.
        self._seconds: dict[bool, deque[float]] = {
            True: deque(maxlen=_COMPARED),
            False: deque(maxlen=_COMPARED),
        }

    @property
    def tries(self) -> bool:
        """Whether the next call is to find out which search is faster: a small one will do."""
        return self._calls < _TRIAL or self._calls % _RETRY == 0

    def prunes(self) -> bool:
        """Return whether the next call goes to the pruned search. Ask once for each call.

        Threads may ask at the same time. What that does to the times costs time and nothing else.
        """
        call = self._calls
        self._calls += 1
        if call < _TRIAL:
            return call % 2 == 0
        faster = all(self._seconds.values()) and self._median(pruned=True) < self._median(
            pruned=False
        )
        return faster != (call % _RETRY == 0)

    def note(self, seconds: float, *, pruned: bool) -> None:
        """Note how long the last call took, in seconds per query, and which search took it."""
        if self._calls > _UNCOUNTED:
            self._seconds[pruned].append(seconds)

    def _median(self, *, pruned: bool) -> float:
        return median(self._seconds[pruned])
