"""The memory bank: rows kept from training, the images that they are of, and searches in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus


@dataclass(frozen=True)
class MemoryBank:
    """Vectors kept from training, in which scoring searches."""

    rows: Float32[np.ndarray, "bank dim"]
    # Which embedding the rows are of, and for each row its image (number in the corpus), y and x in
    # the patch grid. None: rows are not of single images.
    embedding: str = "patches"
    origin: Int64[np.ndarray, "bank 3"] | None = None
    # Where several banks are below one another (`stacked`), the rows of each. None: it is one.
    sizes: tuple[int, ...] | None = None

    def has_others(self, rows: Int64[np.ndarray, " some"]) -> bool:
        """Return whether these rows are not all that there are, be it of one of several banks."""
        sizes = np.array([len(self.rows)] if self.sizes is None else self.sizes)
        bank = np.searchsorted(sizes.cumsum(), rows, side="right")
        return bool((np.bincount(bank, minlength=len(sizes)) < sizes).all())

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
class OwnPart:
    """What training images have in the model themselves, which they are not compared with.

    Without it they are scored as new images would be; with it, each would be its own neighbour.
    """

    # Their numbers in the model, as they joined it.
    images: Int64[np.ndarray, " images"]
    # The rows of the memory bank that are of them; none where no row is an image's.
    rows: Int64[np.ndarray, " rows"]
    # Whether each is compared with a model without all of them, as shots of one part are; else each
    # with one without itself. Rows of a bank are always left out together.
    together: bool = False

    @classmethod
    def of(
        cls, images: Sequence[int], bank: MemoryBank | None, *, together: bool = False
    ) -> "OwnPart":
        """Return the part that these images have in a model with this bank."""
        numbers = np.array(images, np.int64)
        if bank is None or bank.origin is None:
            return cls(numbers, np.empty(0, np.int64), together)
        rows = np.flatnonzero(np.isin(bank.origin[:, 0], numbers))
        return cls(numbers, rows, together)


def nearest_others(
    search: Search, queries: Float32[np.ndarray, "queries dim"], k: int, own: OwnPart | None
) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
    """Return L2 distances and bank rows of the k nearest that are not the images' own, rising.

    Of fewer rows, all are found. All queries are of the images of `own`; None is new images, to
    which every row is another's.
    """
    found = min(k, others(search, own))
    return search.nearest(queries, found, ignore=None if own is None else own.rows)


def others(search: Search, own: OwnPart | None) -> int:
    """Return how many rows of the bank are not the images' own."""
    return search.size - (0 if own is None else len(own.rows))
