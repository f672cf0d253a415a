"""Which of two ways to the same answer is the faster one, found while both are in use."""

from collections import deque
from statistics import median

# The first call of each way is slow, with threads to start and kernels to be made; three more of
# each are compared.
_SLOW, _KEPT = 2, 3
_TRIAL = _SLOW + 2 * _KEPT
# Of so many calls one goes the other way, in case images or the machine's load have changed: where
# that takes 8 times as long, it costs 3 %.
_RETRY = 256


class Pace:
    """Decides between the pruned search and the dense one, call by call.

    How much can be pruned depends on the queries, which nobody has seen when a bank is loaded. The
    decision changes the time and, since both give the same results to the bit, nothing else.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._seconds: dict[bool, deque[float]] = {
            True: deque(maxlen=_KEPT),
            False: deque(maxlen=_KEPT),
        }

    def prunes(self) -> bool:
        """Return whether the next call is to be pruned."""
        call = self._calls
        self._calls += 1
        if call < _TRIAL:
            return call % 2 == 0
        faster = all(self._seconds.values()) and self._median(pruned=True) < self._median(
            pruned=False
        )
        return faster != (call % _RETRY == 0)

    def note(self, seconds: float, *, pruned: bool) -> None:
        """Note what a call took, in seconds a query."""
        if self._calls > _SLOW:
            self._seconds[pruned].append(seconds)

    def _median(self, *, pruned: bool) -> float:
        return median(self._seconds[pruned])
