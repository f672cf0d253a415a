"""A group's embeddings as the embed stage left them: what a method is fitted on."""

from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Protocol, runtime_checkable

import numpy as np

from patchlake.pipeline.config import digest
from patchlake.pipeline.groups.partials import (
    EMBEDDINGS,
    READ_AT_ONCE,
    EmbeddedImages,
    RunNotes,
    StoredReader,
    load,
    load_images,
    opened,
    pieces,
)
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.methods.shared.corpus import Arrays, EmbeddingReader, Fold, Notes, S
from patchlake.pipeline.methods.shared.marks import Marks
from patchlake.pipeline.methods.shared.workers import Held, M, Peers, T
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.storage.folder import Folder

# Fragments that one call of `reduce` folds: a PaDiM state of 100 channels is 250 MB, the
# embeddings of 16 fragments of 256 images are 5 GB.
_FOLDED_AT_ONCE = 16


@runtime_checkable
class CorpusWorkers(Protocol):
    """Where a corpus has its work done: what a runner offers."""

    @property
    def processes(self) -> int:
        """Processes that can hold something in memory at the same time."""

    def each(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield the result of each call, in their order."""

    def members(self, starts: Sequence[Callable[[], M]]) -> AbstractContextManager[Held[M]]:
        """Start a thing in a worker each."""

    def together(self, call: Callable[[Peers], None], members: int) -> None:
        """Run a function in at most `members` workers in step; start it again where one dies."""


@dataclass(frozen=True)
class StoredCorpus:
    """A group's embeddings as the embed stage left them, in the plan's order."""

    model: Folder
    partials: str
    fragments: Sequence[Fragment]
    workers: CorpusWorkers
    # Bytes that one process may hold, and threads of this one.
    memory_budget: int
    threads: int
    # What of the group's pictures counts, as a model keeps it (`groups.roi`); None: all.
    roi: bytes | None = None
    # How many grids of patches an image's arrays have below one another: its own, and those of
    # copies of it that were turned. A method learns from all of them.
    rotations: int = 1

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.fragments[0].group

    def identities(self, images: Iterable[int]) -> dict[int, tuple[str, str, int]]:
        """Return (image_id, source_path, source_row) of these images, by their number.

        Reads what the fragments that hold them are of, and keeps nothing of it.
        """
        found = {}
        for number, wanted in self._by_fragment(images).items():
            fragment, first = self.fragments[number], int(self._firsts[number])
            embedded = self._images_of(fragment.key)
            for image in wanted:
                at = image - first
                place = (embedded.image_ids[at], fragment.path, embedded.source_rows[at])
                found[image] = place
        return found

    def embedded_images(self) -> Iterator[tuple[Fragment, EmbeddedImages]]:
        """Yield each fragment and what its embeddings are of."""
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            keys = (fragment.key for fragment in self.fragments)
            yield from zip(self.fragments, pool.map(self._images_of, keys), strict=True)

    def interiors(self, images: Sequence[int]) -> list[Interior]:
        """Return what counts of these images, in their order; nothing where all does."""
        if not self._has_interiors:
            return []
        found: dict[int, Interior] = {}
        for number, wanted in self._by_fragment(images).items():
            first = int(self._firsts[number])
            told = self._images_of(self.fragments[number].key).interiors
            for image in wanted:
                found[image] = Interior.from_bytes(b64decode(told[image - first]))
        return [found[image] for image in images]

    @cached_property
    def _has_interiors(self) -> bool:
        """Whether images have regions of interest: all of a group have one, or none has."""
        used = np.flatnonzero(np.diff(self._firsts))
        return bool(len(used) and self._images_of(self.fragments[int(used[0])].key).interiors)

    @property
    def unusable(self) -> dict[str, int]:
        """The number of images that could not be used, by status."""
        counts: Counter[str] = Counter()
        for statuses in self._statuses:
            counts.update(statuses)
        return {status: counts[status] for status in sorted(counts) if status != "ok"}

    @property
    def images(self) -> int:
        """Number of usable images."""
        return int(self._firsts[-1])

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""
        with opened(self.model, self._named[0][0]) as stored:
            return stored.shapes

    @property
    def processes(self) -> int:
        """Processes that can hold a part of the corpus each."""
        return self.workers.processes

    def embeddings(self) -> Iterator[Arrays]:
        """Yield each fragment's embeddings."""
        for name, _ in self._named:
            yield load(self.model, [name])

    def some(self, images: Iterable[int]) -> Iterator[tuple[int, Arrays]]:
        """Yield these images' numbers and arrays, one image at a time; reads nothing else.

        They are what a score would be given of these images: without copies that were turned.
        """
        for number, wanted in self._by_fragment(images).items():
            name = f"{self.partials}{self.fragments[number].key}{EMBEDDINGS}"
            with opened(self.model, name) as stored:
                for image in wanted:
                    at = image - int(self._firsts[number])
                    yield image, self._unturned(stored.read(range(at, at + 1)))

    def _unturned(self, arrays: Arrays) -> Arrays:
        if self.rotations == 1:
            return arrays
        return {
            name: array[:, : array.shape[1] // self.rotations] for name, array in arrays.items()
        }

    def marks(self) -> Marks:
        """Return what the images are known by, by number."""
        sha256s: list[str] = []
        part_ids: list[str | None] = []
        thumbnails: list[bytes] = []
        for _, images in self.embedded_images():
            sha256s += images.sha256s
            part_ids += images.part_ids
            thumbnails += map(b64decode, images.thumbnails)
        return Marks.of(sha256s, part_ids, thumbnails)

    def each(self, work: Callable[[Arrays, int], T]) -> Iterator[T]:
        """Yield the results of `work` on each fragment, in order."""
        calls = [partial(_work_on, self.model, [name], first, work) for name, first in self._named]
        return self.workers.each(calls)

    def reduce(self, fold: Fold[S], merge: Callable[[S, S], S]) -> S:
        """Return the state that all fragments are folded into, in order.

        Runs of `_FOLDED_AT_ONCE` are folded by the workers: a state is not much smaller than a
        fragment's embeddings, and few of them travel.
        """
        calls = [partial(_fold, self.model, some, fold) for some in _runs(self._named)]
        return reduce(merge, self.workers.each(calls))

    def reduce_apart(
        self,
        folds: Sequence[Fold[S]],
        merge: Callable[[S, S], S],
        ends: Sequence[Callable[[S], T]],
    ) -> Iterator[T]:
        """Yield, for each fold, its end of what `reduce` returns, to the bit."""
        calls = [
            partial(_fold_all, self.model, self._named, fold, merge, end)
            for fold, end in zip(folds, ends, strict=True)
        ]
        return self.workers.each(calls)

    def held(
        self, start: Callable[[Arrays, int], M], members: int
    ) -> AbstractContextManager[Held[M]]:
        """Start `members` things, or fewer where there are fewer fragments."""
        shares = np.array_split(np.arange(len(self._named)), min(members, len(self._named)))
        starts = []
        for share in shares:
            names = [self._named[i][0] for i in share]
            starts.append(partial(_work_on, self.model, names, self._named[share[0]][1], start))
        return self.workers.members(starts)

    def together(
        self, work: Callable[[Peers, EmbeddingReader, Notes], None], members: int
    ) -> Notes:
        """Run `work` in several workers in step; return what it noted in the run's folder."""
        names = [name for name, _ in self._named]
        firsts = [first for _, first in self._named]
        reader = StoredReader(self.model, names, np.diff([*firsts, self.images]).tolist())
        # What was noted of other images is no part of this training.
        contents = [images.sha256s for _, images in self.embedded_images()]
        trained = digest({"embeddings": names, "contents": contents})
        notes = RunNotes(self.model, f"{self.partials}{trained}-")
        self.workers.together(partial(_together, work, reader, notes), members)
        return notes

    @cached_property
    def _named(self) -> list[tuple[str, int]]:
        """Name of the embeddings, and number of the first image, of each fragment that has any."""
        counts = np.diff(self._firsts)
        return [
            (f"{self.partials}{fragment.key}{EMBEDDINGS}", int(first))
            for fragment, count, first in zip(self.fragments, counts, self._firsts, strict=False)
            if count
        ]

    def _by_fragment(self, images: Iterable[int]) -> dict[int, list[int]]:
        """Return the images, sorted, by the number of the fragment that holds them."""
        found: dict[int, list[int]] = {}
        for image in sorted(set(images)):
            at = int(np.searchsorted(self._firsts, image, side="right")) - 1
            found.setdefault(at, []).append(image)
        return found

    @cached_property
    def _firsts(self) -> np.ndarray:
        """Number of each fragment's first image, and the number of all images."""
        return np.cumsum([0, *(statuses["ok"] for statuses in self._statuses)])

    @cached_property
    def _statuses(self) -> list[Counter[str]]:
        """Counts by status, of each fragment: all that is kept of an image is that it is there."""
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            keys = (fragment.key for fragment in self.fragments)
            return list(pool.map(lambda key: Counter(self._images_of(key).statuses), keys))

    def _images_of(self, key: str) -> EmbeddedImages:
        return load_images(self.model, self.partials, key)


def _work_on(
    model: Folder, names: Sequence[str], first: int, work: Callable[[Arrays, int], T]
) -> T:
    return work(load(model, names), first)


def _fold(model: Folder, named: Sequence[tuple[str, int]], fold: Fold[S]) -> S:
    state: S | None = None
    for name, first in named:
        for start, arrays in pieces(model, name):
            state = fold(state, arrays, first + start)
    assert state is not None, "a fragment has images"
    return state


def _fold_all(
    model: Folder,
    named: Sequence[tuple[str, int]],
    fold: Fold[S],
    merge: Callable[[S, S], S],
    end: Callable[[S], T],
) -> T:
    return end(reduce(merge, (_fold(model, some, fold) for some in _runs(named))))


def _runs(named: Sequence[tuple[str, int]]) -> list[Sequence[tuple[str, int]]]:
    return [named[i : i + _FOLDED_AT_ONCE] for i in range(0, len(named), _FOLDED_AT_ONCE)]


def _together(
    work: Callable[[Peers, EmbeddingReader, Notes], None],
    reader: EmbeddingReader,
    notes: Notes,
    peers: Peers,
) -> None:
    work(peers, reader, notes)
