"""Things that are loaded when they are asked for, and kept while they fit in memory."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Loaded things by name; what was used longest ago leaves first.

    What does not fit the budget at all is loaded all the same, and is then alone.
    """

    def __init__(self, load: Callable[[str], T], size: Callable[[str], int], budget: int) -> None:
        """Keep what `load` returns while the sum of `size` is at most `budget`, both in bytes."""
        self._load = load
        self._size = size
        self._budget = budget
        self._kept: OrderedDict[str, T] = OrderedDict()

    def get(self, name: str) -> T:
        """Return the thing, loaded if it is not there; room is made for it before."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        room = self._budget - self._size(name)
        while self._kept and sum(map(self._size, self._kept)) > room:
            self._kept.popitem(last=False)
        self._kept[name] = self._load(name)
        return self._kept[name]
