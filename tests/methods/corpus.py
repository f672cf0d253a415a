"""A corpus and a fitted group in memory, for tests of methods."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import FitResult
from patchlake.pipeline.methods.shared.marks import Marks
from patchlake.pipeline.model_store.arrays import from_bytes, to_bytes


@dataclass(frozen=True)
class FakeHeld:
    members: list

    def ask(self, question):
        return [question(member) for member in self.members]


@dataclass(frozen=True)
class FakeNotes:
    noted: dict = field(default_factory=dict)

    def read(self, name):
        return from_bytes(self.noted[name]) if name in self.noted else None

    def write(self, name, arrays):
        self.noted[name] = to_bytes(arrays)


@dataclass(frozen=True)
class FakeReader:
    fragments: list[dict[str, np.ndarray]]

    @property
    def sizes(self):
        return [_images(fragment) for fragment in self.fragments]

    def load(self, fragment):
        return self.fragments[fragment]


@dataclass(frozen=True)
class Alone:
    threads: int = 1
    number: int = 0
    count: int = 1

    def gather(self, array):
        return [array]


@dataclass(frozen=True)
class FakeCorpus:
    """Fragments in memory, and processes that are all this one."""

    fragments: list[dict[str, np.ndarray]]
    processes: int = 2
    memory_budget: int = 2**30
    threads: int = 1
    notes: FakeNotes = field(default_factory=FakeNotes)
    # Of the images; without, all are of different files and parts.
    known: Marks | None = None

    def marks(self):
        if self.known is not None:
            return self.known
        digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(self.images)]
        looks = [np.random.default_rng(n).bytes(256) for n in range(self.images)]
        return Marks.of(digests, [None] * self.images, looks)

    @property
    def images(self):
        return sum(map(_images, self.fragments))

    @property
    def shapes(self):
        return {name: array.shape[1:] for name, array in self.fragments[0].items()}

    def embeddings(self):
        return iter(self.fragments)

    def each(self, work):
        return (work(f, n) for f, n in zip(self.fragments, self.firsts(), strict=True))

    def reduce(self, fold, merge):
        numbered = list(zip(self.fragments, self.firsts(), strict=True))
        runs = [numbered[i : i + 2] for i in range(0, len(numbered), 2)]
        return reduce(merge, (_folded(fold, run) for run in runs))

    def reduce_apart(self, folds, merge, ends):
        return (end(self.reduce(fold, merge)) for fold, end in zip(folds, ends, strict=True))

    def firsts(self):
        return np.cumsum([0, *map(_images, self.fragments)])[:-1].tolist()

    @contextmanager
    def held(self, start, members):
        shares = np.array_split(np.arange(len(self.fragments)), members)
        yield FakeHeld(
            [
                start(_joined([self.fragments[i] for i in share]), self.firsts()[share[0]])
                for share in shares
                if len(share)
            ]
        )

    def together(self, work, members):  # noqa: ARG002 - one is at most that many
        work(Alone(self.threads), FakeReader(self.fragments), self.notes)
        return self.notes


@dataclass(frozen=True)
class FakeGallery:
    fragments: list[dict[str, np.ndarray]]

    def of_image(self, number):
        for fragment in self.fragments:
            if number < _images(fragment):
                return {name: array[number] for name, array in fragment.items()}
            number -= _images(fragment)
        raise IndexError(number)


@dataclass(frozen=True)
class FakeGroup:
    """A fitted group, and what was kept of each fragment for its gallery."""

    result: FitResult
    kept: list[dict[str, np.ndarray]] = field(default_factory=list)

    def state(self):
        return self.result.state

    def search(self):
        return ExactSearch.over(self.result.bank.rows)

    def rows(self):
        return self.result.bank.rows

    def gallery(self):
        return FakeGallery(self.kept)


def own_part(found: FitResult, image: int) -> OwnPart:
    """Return what one training image has in the model."""
    return OwnPart.of([image], found.bank)


def split(embeddings: dict[str, np.ndarray], *sizes: int) -> list[dict[str, np.ndarray]]:
    """Return fragments of these sizes, and one of what is left."""
    ends = np.cumsum(sizes)
    parts = {name: np.split(array, ends) for name, array in embeddings.items()}
    fragments = [{name: parts[name][i] for name in parts} for i in range(len(sizes) + 1)]
    return [fragment for fragment in fragments if _images(fragment)]


def _folded(fold, run):
    state = None
    for fragment, first in run:
        state = fold(state, fragment, first)
    return state


def _images(fragment):
    return len(next(iter(fragment.values())))


def _joined(fragments):
    return {name: np.concatenate([f[name] for f in fragments]) for name in fragments[0]}
