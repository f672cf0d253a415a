"""The training images of a group as a method has them: stored embeddings, and who works on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from patchlake.pipeline.methods.shared.marks import Marks
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T

# Arrays by name. Of embeddings, the first axis of each is images.
Arrays = dict[str, np.ndarray]
S = TypeVar("S")


@runtime_checkable
class Fold(Protocol[S]):
    """What embeddings, of a fragment or a piece of one, add to the state before them."""

    def __call__(self, before: S | None, embeddings: Arrays, first: int, /) -> S:
        """Return the state with these images, of which the first has number `first`.

        `before` is None at the beginning of a run.
        """


@runtime_checkable
class Notes(Protocol):
    """Arrays that outlive a process, by name: where a training goes on from."""

    def read(self, name: str) -> Arrays | None:
        """Return what was written last, or None."""

    def write(self, name: str, arrays: Arrays) -> None:
        """Replace what was written, in one atomic put."""


@runtime_checkable
class EmbeddingReader(Protocol):
    """The stored embeddings of a corpus, wherever a worker is."""

    @property
    def sizes(self) -> Sequence[int]:
        """Images of each fragment."""

    def load(self, fragment: int) -> Arrays:
        """Return one fragment's embeddings, by its number."""


@runtime_checkable
class Corpus(Protocol):
    """The embedded normal images of one group, fragment by fragment in the plan's order."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""

    @property
    def processes(self) -> int:
        """Processes that can hold a part of the corpus each."""

    @property
    def memory_budget(self) -> int:
        """Bytes that one process may hold."""

    @property
    def threads(self) -> int:
        """Threads of this process."""

    def embeddings(self) -> Iterator[Arrays]:
        """Yield each fragment's embeddings; may be called again."""

    def marks(self) -> Marks:
        """Return what the images are known by, by number: some 300 bytes each."""

    def each(self, work: Callable[[Arrays, int], T]) -> Iterator[T]:
        """Yield the results of `work` on each fragment, done by the workers, in order.

        `work` is called with a fragment's embeddings and the number of its first image.
        """

    def reduce(self, fold: Fold[S], merge: Callable[[S, S], S]) -> S:
        """Return the state that all fragments are folded into, in order.

        Runs of fragments are folded each from None, piece by piece, and merged: what a run and a
        piece are depends on the plan and on nothing else. Both may take the memory of the state
        that comes first. A worker holds 512 MiB of a fragment and its state; where states are
        merged, there are up to three.
        """

    def reduce_apart(
        self,
        folds: Sequence[Fold[S]],
        merge: Callable[[S, S], S],
        ends: Sequence[Callable[[S], T]],
    ) -> Iterator[T]:
        """Yield, for each fold, its end of what `reduce` returns; for states that are too large.

        Each is one worker's, which reads all fragments, and holds 512 MiB of one and three states.
        """

    def held(
        self, start: Callable[[Arrays, int], M], members: int
    ) -> AbstractContextManager[Held[M]]:
        """Start `members` things on the workers, each of its share of the fragments.

        `start` is called with the share's embeddings and the number of its first image.
        """

    def together(
        self, work: Callable[[Peers, EmbeddingReader, Notes], None], members: int
    ) -> Notes:
        """Run `work` in at most `members` processes in step; return its notes.

        It is started again where a process dies, and must go on from its notes.
        """
