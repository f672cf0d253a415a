"""What a method is given, and what it gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T

if TYPE_CHECKING:
    # They import torch, 3 s of a process that only reads or writes tables.
    from torch import Tensor

    from patchlake.pipeline.index.galleries import Galleries

Progress = Callable[[int, int], None]
# Arrays by name. Of embeddings, the first axis of each is images.
Arrays = dict[str, np.ndarray]
S = TypeVar("S")


class Fold(Protocol[S]):
    """What embeddings, of a fragment or a piece of one, add to the state before them."""

    def __call__(self, before: S | None, embeddings: Arrays, first: int, /) -> S:
        """Return the state with these images, of which the first has number `first`.

        `before` is None at the beginning of a run.
        """


class Notes(Protocol):
    """Arrays that outlive a process, by name: where a training goes on from."""

    def read(self, name: str) -> Arrays | None:
        """Return what was written last, or None."""

    def write(self, name: str, arrays: Arrays) -> None:
        """Replace what was written, in one atomic put."""


class Reader(Protocol):
    """The stored embeddings of a corpus, wherever a worker is."""

    @property
    def sizes(self) -> Sequence[int]:
        """Images of each fragment."""

    def load(self, fragment: int) -> Arrays:
        """Return one fragment's embeddings, by its number."""


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

    def together(self, work: Callable[[Peers, Reader, Notes], None], members: int) -> Notes:
        """Run `work` in at most `members` processes in step; return its notes.

        It is started again where a process dies, and must go on from its notes.
        """


@dataclass(frozen=True)
class MemoryBank:
    """Vectors kept from training, in which scoring searches."""

    rows: Float32[np.ndarray, "bank dim"]
    # Which embedding the rows are of, and for each row its image (number in the corpus), y and x in
    # the patch grid. None: rows are not of single images.
    embedding: str = "patches"
    origin: Int64[np.ndarray, "bank 3"] | None = None

    @classmethod
    def of_images(cls, corpus: Corpus, embedding: str) -> "MemoryBank":
        """Return the bank of all images, a row each, of an embedding of one axis."""
        rows = np.concatenate(list(corpus.each(partial(_embedding, name=embedding))))
        origin = np.zeros((len(rows), 3), np.int64)
        origin[:, 0] = np.arange(len(rows))
        return cls(rows, embedding, origin)

    def joined(self, other: "MemoryBank", first: int) -> "MemoryBank":
        """Return both banks' rows, the other's images being numbered from `first`."""
        assert self.origin is not None
        assert other.origin is not None
        origin = np.concatenate([self.origin, other.origin + np.array([first, 0, 0])])
        return MemoryBank(np.concatenate([self.rows, other.rows]), other.embedding, origin)

    def without(self, images: Int64[np.ndarray, " withdrawn"]) -> "MemoryBank":
        """Return the bank without the rows of some images; those left close up.

        Raises:
            ConfigError: if no row is left.
        """
        assert self.origin is not None
        kept = ~np.isin(self.origin[:, 0], images)
        if not kept.any():
            raise ConfigError(
                f"without these {len(images)} images none of {len(kept)} rows of the memory bank "
                "is left; fit again on other images"
            )
        origin = self.origin[kept]
        origin[:, 0] = closed_up(origin[:, 0], images)
        return MemoryBank(self.rows[kept], self.embedding, origin)


def closed_up(
    numbers: Int64[np.ndarray, " some"], withdrawn: Int64[np.ndarray, " withdrawn"]
) -> Int64[np.ndarray, " some"]:
    """Return the numbers that images have once others, not among them, are withdrawn."""
    return numbers - np.searchsorted(np.unique(withdrawn), numbers)


def _embedding(embeddings: Arrays, first: int, *, name: str) -> np.ndarray:  # noqa: ARG001
    return embeddings[name]


@dataclass(frozen=True)
class Fitted:
    """What a fit stores. Arrays and numbers only."""

    # For model.json: covering_radius, patches, ...
    facts: dict[str, float | str]
    # What scoring needs beside a bank and a gallery.
    state: Arrays = field(default_factory=dict)
    bank: MemoryBank | None = None
    # What of each fragment's embeddings goes into the model's gallery, if there is one.
    gallery: Callable[[Arrays], Arrays] | None = None
    # Images that the fit has not seen, by number: scores are calibrated on these. None: on all,
    # each scored without its own part in the model.
    unseen: Int64[np.ndarray, " images"] | None = None
    # The score above which an image is anomalous, if the method knows one.
    threshold: float | None = None
    # What is kept beside the state, in float64, for images that join or leave later.
    statistics: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """A fitted group which images join or leave: what its files hold, nothing derived from it."""

    images: int
    facts: Mapping[str, float | str]
    state: Arrays
    statistics: Arrays
    bank: MemoryBank | None = None


class Gallery(Protocol):
    """Feature maps of the training images, kept in the model's files."""

    def of_image(self, number: int) -> Arrays:
        """Return what the fit kept of one image, in its stored dtype."""


@dataclass(frozen=True)
class Model:
    """A fitted group, loaded: what scoring has at hand."""

    state: Arrays
    search: Search | None = None
    gallery: Gallery | None = None
    # What `Method.prepare` adds: searches by name, or among the pixels of the gallery.
    searches: Mapping[str, Search] = field(default_factory=dict)
    pixels: "Galleries | None" = None


@dataclass(frozen=True)
class Scores:
    """One number an image, and one a patch where the method has a map. Larger is worse."""

    image_scores: Float32[np.ndarray, " images"]
    anomaly_maps: Float32[np.ndarray, "images rows columns"] | None


class Method(Protocol):
    """A frozen dataclass of settings; one module of `pipeline.methods` each, found by its name."""

    # `backbone.layers` where the user names none.
    layers: ClassVar[Layers]
    # Training images that scores are calibrated on, at most.
    calibration_images: ClassVar[int]
    # Whether `index.kind` may be other than exact: there is a memory bank with rows of images, and
    # so others of their images to measure an approximate index with.
    approximable: ClassVar[bool]

    def embed(self, feature_maps: "Sequence[Tensor]", *, seed: int) -> "dict[str, Tensor]":
        """Return what is kept of each image, by name, from the backbone's feature maps."""

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> Fitted:
        """Return what is to be stored."""

    def prepare(self, model: Model) -> Model:
        """Return a model, just loaded, with what scoring derives from it once."""

    def score(
        self,
        embeddings: Arrays,
        model: Model,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Scores:
        """Return the scores of each image, whatever the other images are.

        `ignore` is given when images of the training corpus are scored, which must not be compared
        with themselves: it names the rows that one image has in the memory bank, or none where no
        row is an image's, and then there may be several images.
        """


@runtime_checkable
class Updatable(Method, Protocol):
    """A method whose models images can join and leave without being fitted again.

    Images are numbered as they joined; where some leave, the others close up.
    """

    # Whether what is to leave must be embedded again: nothing of a single image is in the model.
    leaves_by_embedding: ClassVar[bool]

    def update(
        self, earlier: Earlier, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> Fitted:
        """Return what is to be stored of the earlier images and those of the corpus together.

        Of a gallery it is what is to be added.

        Raises:
            ConfigError: if the settings of the method keep too little for that.
        """

    def withdraw(
        self,
        earlier: Earlier,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,
        *,
        seed: int,
    ) -> Fitted:
        """Return what is to be stored without some of the images, given by number.

        `corpus` are these images, where `leaves_by_embedding` asks for them.

        Raises:
            ConfigError: if too little would be left.
        """
