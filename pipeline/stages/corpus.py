"""A group's embeddings as the embed stage left them: what a method is fitted on."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Protocol

import numpy as np

from pipeline.lake.arrays import from_bytes, to_bytes
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment
from pipeline.methods.contract import Arrays, Held, M, Notes, Peers, Reader, S, T

EMBEDDINGS = ".safetensors"

# Fragments that one call of `reduce` merges: a PaDiM state of 100 channels is 250 MB, the
# embeddings of 16 fragments of 256 images are 5 GB.
_MERGED_AT_ONCE = 16


@dataclass(frozen=True)
class Described:
    """What a fragment's embeddings are of."""

    # Of the usable images.
    image_ids: list[str]
    source_rows: list[int]
    # Of all images that were to be used.
    statuses: list[str]


class Workers(Protocol):
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
    workers: Workers
    # Bytes that one process may hold, and threads of this one.
    memory_budget: int
    threads: int

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.fragments[0].group

    @cached_property
    def identities(self) -> list[tuple[str, str, int]]:
        """(image_id, source_path, source_row) of each image of the corpus."""
        return [
            (image_id, fragment.path, row)
            for fragment, described in zip(self.fragments, self._described, strict=True)
            for image_id, row in zip(described.image_ids, described.source_rows, strict=True)
        ]

    @property
    def unusable(self) -> dict[str, int]:
        """The number of images that could not be used, by status."""
        counts = Counter(status for part in self._described for status in part.statuses)
        return {status: counts[status] for status in sorted(counts) if status != "ok"}

    @property
    def images(self) -> int:
        """Number of usable images."""
        return len(self.identities)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""
        return {name: array.shape[1:] for name, array in next(self.embeddings()).items()}

    @property
    def processes(self) -> int:
        """Processes that can hold a part of the corpus each."""
        return self.workers.processes

    def embeddings(self) -> Iterator[Arrays]:
        """Yield each fragment's embeddings."""
        for name, _ in self._named:
            yield _load(self.model, [name])

    def each(self, work: Callable[[Arrays, int], T]) -> Iterator[T]:
        """Yield the results of `work` on each fragment, in order."""
        calls = [partial(_work_on, self.model, [name], first, work) for name, first in self._named]
        return self.workers.each(calls)

    def reduce(self, start: Callable[[Arrays, int], S], merge: Callable[[S, S], S]) -> S:
        """Return what `start` makes of each fragment, merged in order.

        Within runs of `_MERGED_AT_ONCE` fragments first, by the workers: a state is not much
        smaller than a fragment's embeddings, and most of them never travel.
        """
        runs = range(0, len(self._named), _MERGED_AT_ONCE)
        named = [self._named[i : i + _MERGED_AT_ONCE] for i in runs]
        calls = [partial(_reduce, self.model, some, start, merge) for some in named]
        return reduce(merge, self.workers.each(calls))

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

    def together(self, work: Callable[[Peers, Reader, Notes], None], members: int) -> Notes:
        """Run `work` in several workers in step; return what it noted in the run's folder."""
        names = [name for name, _ in self._named]
        firsts = [first for _, first in self._named]
        reader = StoredReader(self.model, names, np.diff([*firsts, self.images]).tolist())
        notes = RunNotes(self.model, f"{self.partials}{self.fragments[0].key}-")
        self.workers.together(partial(_together, work, reader, notes), members)
        return notes

    @cached_property
    def _named(self) -> list[tuple[str, int]]:
        """Name of the embeddings, and number of the first image, of each fragment that has any."""
        counts = [len(described.image_ids) for described in self._described]
        firsts = np.cumsum([0, *counts])
        return [
            (f"{self.partials}{fragment.key}{EMBEDDINGS}", int(first))
            for fragment, count, first in zip(self.fragments, counts, firsts, strict=False)
            if count
        ]

    @cached_property
    def _described(self) -> list[Described]:
        return [
            Described(**json.loads(self.model.read(f"{self.partials}{fragment.key}.json")))
            for fragment in self.fragments
        ]


@dataclass(frozen=True)
class StoredReader:
    """The same embeddings, for a worker."""

    model: Folder
    names: Sequence[str]
    sizes: Sequence[int]

    def load(self, fragment: int) -> Arrays:
        """Return one fragment's embeddings, by its number."""
        return _load(self.model, [self.names[fragment]])


@dataclass(frozen=True)
class RunNotes:
    """Arrays in the run's folder, which go with its partial results."""

    model: Folder
    prefix: str

    def read(self, name: str) -> Arrays | None:
        """Return what was written last, or None."""
        try:
            content = self.model.read(f"{self.prefix}{name}{EMBEDDINGS}")
        except FileNotFoundError:
            return None
        return from_bytes(content)

    def write(self, name: str, arrays: Arrays) -> None:
        """Replace what was written, in one atomic put."""
        self.model.write(f"{self.prefix}{name}{EMBEDDINGS}", to_bytes(arrays))


def _load(model: Folder, names: Sequence[str]) -> Arrays:
    parts: list[Arrays] = [from_bytes(model.read(name)) for name in names]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _work_on(
    model: Folder, names: Sequence[str], first: int, work: Callable[[Arrays, int], T]
) -> T:
    return work(_load(model, names), first)


def _reduce(
    model: Folder,
    named: Sequence[tuple[str, int]],
    start: Callable[[Arrays, int], S],
    merge: Callable[[S, S], S],
) -> S:
    return reduce(merge, (start(_load(model, [name]), first) for name, first in named))


def _together(
    work: Callable[[Peers, Reader, Notes], None], reader: Reader, notes: Notes, peers: Peers
) -> None:
    work(peers, reader, notes)
