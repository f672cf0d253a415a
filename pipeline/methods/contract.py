"""What a method is given, and what it gives back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from pipeline.config import Scalar
from pipeline.index.search import Search

Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
T = TypeVar("T")


class Held(Protocol[M_co]):
    """Things that workers hold in memory, each over some consecutive fragments."""

    def ask(self, question: Callable[[M_co], T]) -> Sequence[T]:
        """Return each one's answer, in the order of the fragments."""


class Corpus(Protocol):
    """The embedded normal images of one group, fragment by fragment in the plan's order."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding."""

    @property
    def processes(self) -> int:
        """Processes that can hold a part of the corpus each."""

    @property
    def memory_budget(self) -> int:
        """Bytes that one process may hold."""

    @property
    def threads(self) -> int:
        """Threads of this process."""

    def embeddings(self) -> Iterator[Float32[np.ndarray, "images ..."]]:
        """Yield each fragment's embeddings; may be called again."""

    def each(self, work: Callable[[Float32[np.ndarray, "images ..."], int], T]) -> Sequence[T]:
        """Return the results of `work` on each fragment, done by the workers, in order.

        `work` is called with a fragment's embeddings and the number of its first image.
        """

    def held(
        self, start: Callable[[Float32[np.ndarray, "images ..."], int], M], members: int
    ) -> AbstractContextManager[Held[M]]:
        """Start `members` things on the workers, each of its share of the fragments.

        `start` is called with the share's embeddings and the number of its first image.
        """


@dataclass(frozen=True)
class Fitted:
    """What a fit stores. Arrays and numbers only."""

    # What scoring needs beside the bank.
    state: Arrays
    memory_bank: Float32[np.ndarray, "bank dim"]
    # Of each bank row: image (its number in the corpus), y and x in the patch grid.
    origin: Int64[np.ndarray, "bank 3"]
    # For model.json: covering_radius, patches, ...
    facts: dict[str, float | str]


@dataclass(frozen=True)
class Scores:
    """One number an image, and one a patch: raw distances, larger is worse."""

    image_scores: Float32[np.ndarray, " images"]
    anomaly_maps: Float32[np.ndarray, "images rows columns"]


class Method(Protocol):
    """A frozen dataclass of settings; one module of `pipeline.methods` each, found by its name."""

    def embed(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Return (images, ...) from the backbone's feature maps."""

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> Fitted:
        """Return what is to be stored."""

    def score(
        self,
        embeddings: Float32[np.ndarray, "images rows columns dim"],
        state: Arrays,
        search: Search,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Scores:
        """Return the scores of each image, whatever the other images are.

        `ignore` names bank rows that do not count: an image must not be its own neighbour when
        training images are scored.
        """


class _Buildable(Protocol):
    def __call__(self, **options: Scalar) -> Method: ...


Build = _Buildable
