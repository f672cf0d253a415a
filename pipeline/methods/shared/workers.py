"""What methods and stages know of the processes that work for them."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
T = TypeVar("T")


@runtime_checkable
class Held(Protocol[M_co]):
    """Things that workers hold in memory, each over some consecutive fragments."""

    def ask(self, question: Callable[[M_co], T]) -> Sequence[T]:
        """Return each one's answer, in the order of the fragments.

        A thing whose process dies is started again as at first, and any question may be asked of
        it more than once: what a question changes, it must be able to change again.
        """


@runtime_checkable
class SharedArrays(Protocol[M_co]):
    """A thing whose arrays the workers of a node have in common, read only."""

    def get(self) -> M_co | None:
        """Return it, valid while it is in use; None where it could not be made, or was lost."""


@runtime_checkable
class Peers(Protocol):
    """Processes that run one function in step; each has a number, from 0."""

    @property
    def number(self) -> int:
        """Which of them this is."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def threads(self) -> int:
        """Threads that each may use."""

    def gather(self, array: np.ndarray) -> Sequence[np.ndarray]:
        """Return everybody's array, by number: the same for all. Shapes must be equal."""
