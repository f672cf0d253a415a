"""Gradient descent by several workers in step, with the same bits on any number of them.

Each image's gradient is computed by itself, on one thread; image i of a batch by worker i modulo
their number. The gradients are gathered and summed in the order of the batch by every worker, so
that all take the same step. After each epoch the first worker notes all that the next one needs.
The steps are numpy's and not `torch.optim.AdamW`'s: each worker takes them by itself, and on a
processor without AVX2 torch 2.14 gives them other bits, numpy the same.

AdamW: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (arXiv 1711.05101);
amsgrad: Reddi, Kale, Kumar, "On the Convergence of Adam and Beyond", ICLR 2018 (arXiv 1904.09237).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from patchlake.pipeline.methods.shared.contract import Progress
from patchlake.pipeline.methods.shared.corpus import Arrays, EmbeddingReader, Notes
from patchlake.pipeline.methods.shared.workers import Peers

Flat = Float32[np.ndarray, " parameters"]
# The loss of one image and its gradient, at some parameters.
Gradient = Callable[[Arrays, np.ndarray], tuple[float, np.ndarray]]

# The name of a training's notes.
_NAME = "training"
# Fragments that are shuffled together: 2 x 256 images of 1.4 MB (CFA on ResNet-18) or 5.6 MB (on
# Wide ResNet-50) are 0.7 or 2.9 GB. A fixed number, or memory would change results.
_WINDOW = 2

_BETA_1, _BETA_2, _EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)


@dataclass(frozen=True)
class AdamW:
    """Parameters with the moments of their gradients, after some steps of AdamW with amsgrad.

    In numpy: the state is arrays, and the bits of a step do not depend on threads.
    """

    flat: Flat
    mean: Flat
    square: Flat
    largest: Flat
    steps: Int64[np.ndarray, ""]

    @classmethod
    def start(cls, flat: Flat) -> "AdamW":
        """Return the state before the first step."""
        zeros = np.zeros_like(flat)
        return cls(flat, zeros, zeros, zeros, np.array(0))

    def step(self, gradient: Flat, rate: float, decay: float) -> "AdamW":
        """Return the state after one more step, of that learning rate and weight decay."""
        steps = int(self.steps) + 1
        mean = self.mean + (1 - _BETA_1) * (gradient - self.mean)
        square = _BETA_2 * self.square + (1 - _BETA_2) * gradient * gradient
        largest = np.maximum(self.largest, square)
        unbiased = np.float32(math.sqrt(1 - float(_BETA_2) ** steps))
        size = np.float32(rate / (1 - float(_BETA_1) ** steps))
        moved = size * mean / (np.sqrt(largest) / unbiased + _EPSILON)
        flat = self.flat * np.float32(1 - rate * decay) - moved
        return AdamW(flat, mean, square, largest, np.array(steps))


@dataclass(frozen=True)
class TrainedParameters:
    """Parameters, and the mean loss of each epoch."""

    flat: Flat
    losses: Float64[np.ndarray, " epochs"]

    @classmethod
    def noted(cls, notes: Notes) -> "TrainedParameters":
        """Return what a descent has come to."""
        found = notes.read(_NAME)
        assert found is not None
        return cls(found["flat"], found["losses"])


@dataclass(frozen=True)
class Descent:
    """Settings of a descent; `run` is what each worker does."""

    epochs: int
    # Images of a step. An epoch's last ones, too few for a batch, are passed over.
    batch: int
    rate: float
    decay: float
    seed: int
    # Images to leave out, by number.
    unseen: Int64[np.ndarray, " images"]

    def run(
        self,
        start: Flat,
        gradient: Gradient,
        workplace: tuple[Peers, EmbeddingReader, Notes],
        progress: Progress,
    ) -> None:
        """Go down to the last epoch, from where the notes end.

        A worker holds two fragments, and a batch of gradients.

        Args:
            start: Parameters before the first step.
            gradient: Of an image; called by several threads.
            workplace: As `Corpus.together` gives it.
            progress: Called with (epochs done, epochs).
        """
        peers, reader, notes = workplace
        noted = notes.read(_NAME)
        state, losses = AdamW.start(start), list[float]()
        if noted is not None:
            losses = noted["losses"].tolist()
            state = AdamW(**{name: noted[name] for name in vars(state)})
        fragments = _Fragments(reader)
        batch = min(self.batch, sum(reader.sizes) - len(self.unseen))
        with one_thread_each(peers.threads) as pool:
            share = _Share(peers, gradient, pool, batch)
            for epoch in range(len(losses), self.epochs):
                of_batches = []
                for images in share.batches(self._shuffled(epoch, reader), fragments):
                    loss, mean = share.mean_gradient(images, state.flat)
                    state = state.step(mean, self.rate, self.decay)
                    of_batches.append(loss)
                losses.append(float(np.mean(of_batches)))
                if peers.number == 0:
                    notes.write(_NAME, vars(state) | {"losses": np.array(losses)})
                progress(epoch + 1, self.epochs)

    def _shuffled(self, epoch: int, reader: EmbeddingReader) -> Iterator[list[int]]:
        """Yield an epoch's images, by number, a few fragments' at a time."""
        rng = np.random.default_rng([self.seed, epoch])
        firsts = np.cumsum([0, *reader.sizes])
        fragments = rng.permutation(len(reader.sizes))
        for begin in range(0, len(fragments), _WINDOW):
            window = fragments[begin : begin + _WINDOW]
            numbers = np.concatenate([np.arange(firsts[f], firsts[f + 1]) for f in window])
            yield rng.permutation(np.setdiff1d(numbers, self.unseen)).tolist()


class _Fragments:
    """Stored images, with the fragments of one window held in memory."""

    def __init__(self, reader: EmbeddingReader) -> None:
        self._reader = reader
        self._firsts = np.cumsum([0, *reader.sizes]).tolist()
        self._held: dict[int, Arrays] = {}

    def hold(self, numbers: list[int]) -> None:
        """Hold the fragments of these images, and no others."""
        wanted = {bisect_right(self._firsts, number) - 1 for number in numbers}
        # Let go before loading; an epoch of one window loads nothing.
        self._held = {f: arrays for f, arrays in self._held.items() if f in wanted}
        for fragment in sorted(wanted - set(self._held)):
            self._held[fragment] = self._reader.load(fragment)

    def image(self, number: int) -> Arrays:
        """Return a copy of an image: a batch may go on in the next window."""
        fragment = bisect_right(self._firsts, number) - 1
        local = number - self._firsts[fragment]
        return {name: np.array(array[local]) for name, array in self._held[fragment].items()}


@dataclass(frozen=True)
class _Share:
    """A worker's part of each batch."""

    peers: Peers
    gradient: Gradient
    pool: ThreadPoolExecutor
    batch: int

    def batches(
        self, windows: Iterator[list[int]], fragments: _Fragments
    ) -> Iterator[list[Arrays]]:
        """Yield this worker's images of each full batch."""
        own: list[Arrays] = []
        place = 0
        for numbers in windows:
            fragments.hold(numbers)
            for number in numbers:
                if place % self.peers.count == self.peers.number:
                    own.append(fragments.image(number))
                place += 1
                if place == self.batch:
                    yield own
                    own, place = [], 0

    def mean_gradient(self, images: list[Arrays], flat: Flat) -> tuple[float, Flat]:
        """Return the batch's mean loss and gradient, from every worker's part."""
        count = self.peers.count
        part = np.zeros((-(-self.batch // count), len(flat) + 1), np.float32)
        for slot, (loss, own) in enumerate(self.pool.map(self.gradient, images, repeat(flat))):
            part[slot, 0], part[slot, 1:] = loss, own
        parts = self.peers.gather(part)
        total = np.zeros(len(flat) + 1)
        for place in range(self.batch):
            total += parts[place % count][place // count]
        mean = (total / self.batch).astype(np.float32)
        return float(mean[0]), mean[1:]


def one_thread_each(threads: int) -> ThreadPoolExecutor:
    """Return a pool in whose threads torch uses one: the last bits of a product depend on it."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
