"""CFA: distance to the nearest of fixed centres, in features that were adapted to normal images.

Lee, Lee, Song, "CFA: Coupled-Hypersphere-Based Feature Adaptation for Target-Oriented Anomaly
Localization", IEEE Access 2022 (arXiv 2206.04325). The centres are the mean over training images of
a random linear descriptor at each location; then the descriptor is trained to bring patches into
small hyperspheres around their nearest centres.

Deliberate differences from the paper and the authors' code:

* the backbone is what timm has, with features after a block's last ReLU. The authors change the
  residual blocks to give what is before it: one reason why their published figures are higher;
* centres are the mean of all images. The authors' running mean gives each batch the same weight,
  which differs where the last batch is smaller;
* the loss pushes off neighbours K + 1 to K + J; the authors' slice is right for K = J only;
* the image score is the largest of the patch grid, smoothed there by a Gaussian; the authors smooth
  after upsampling, and add a min-max over the test set, which no image by itself has;
* some images are left out (`held_out_fraction`), and scores are calibrated on these: what it was
  trained on looks more normal than new images ever will. Where that would be fewer than 5, whose
  spread says little, none is, and calibration is on the training images themselves;
* a batch is at most the training set, which would otherwise train nothing;
* images are shuffled within a few fragments at a time, so that memory is bounded
  (`pipeline.methods.shared.descent`); the last epoch counts, not the best one on a test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from pydantic import Field
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.index.choose import ChosenSearch
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.maths.smoothing import smoothed_peaks
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart
from patchlake.pipeline.methods.shared.contract import (
    NO_BANK,
    FitResult,
    FittedGroup,
    Method,
    Progress,
    Scores,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus, EmbeddingReader, Notes
from patchlake.pipeline.methods.shared.descent import Descent, TrainedParameters, one_thread_each
from patchlake.pipeline.methods.shared.hyperspheres import (
    Hyperspheres,
    Loss,
    Parameters,
    describe,
    search_among,
)
from patchlake.pipeline.methods.shared.workers import Peers

_LEAST_HELD_OUT = 5
# r before the first step, of the authors' code.
_FIRST_RADIUS = 1e-5


@dataclass(frozen=True, kw_only=True)
class CFA:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (1, 2, 3)
    calibration_images: ClassVar[int] = 200
    exact_because: ClassVar[str] = NO_BANK
    scored_together: ClassVar[bool] = False

    # The channels of all layers, and the locations, are divided by these: dimensions, centres.
    gamma_d: Annotated[int, Field(ge=1)] = 1
    gamma_c: Annotated[int, Field(ge=1)] = 1
    # K, of the loss and of the score, and J.
    neighbours: Annotated[int, Field(ge=1)] = 3
    hard_negatives: Annotated[int, Field(ge=1)] = 3
    nu: Annotated[float, Field(gt=0)] = 1e-3
    alpha: Annotated[float, Field(ge=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 30
    # Images of one step. Other than `batch_size`, it changes the result.
    training_batch: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return each layer's 3 x 3 means (images, rows, columns, channels) on its own grid.

        For ResNet-18 that is 1.4 MB an image; side by side on the finest grid it would be 5.6 MB.
        """
        return {
            f"layer{number}": functional.avg_pool2d(maps, 3, 1, 1).permute(0, 2, 3, 1)
            for number, maps in enumerate(feature_maps)
        }

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:
        """Return the trained descriptor, and the centres as the memory bank.

        O(epochs * images * locations^2 * dim / gamma_c) time: for 3136 locations of 448 dimensions
        (ResNet-18 at 224 pixels) 90 ms of one core an image and epoch, so that 30 epochs of 682
        images are half an hour of one core. At most `training_batch` workers share it.

        Raises:
            ConfigError: if gamma_d leaves no dimension, or gamma_c fewer than K + J centres.
        """
        unseen = held_out(corpus.images, self.held_out_fraction)
        start = self._start(corpus, seed)
        centres = self._centres(corpus, start, unseen, seed)
        descent = self._descent(seed, unseen)
        training = _Training(self, centres, start, descent, _LocalProgress(progress))
        # More workers than images in a batch would have nothing to do.
        trained = TrainedParameters.noted(corpus.together(training, self.training_batch))
        parameters = Parameters.of(trained.flat, start.dim)
        facts: dict[str, float | str] = {
            "epochs": float(self.epochs),
            "loss_first": float(trained.losses[0]),
            "loss_last": float(trained.losses[-1]),
            "radius": float(parameters.radius),
            "bank_rows": float(len(centres)),
        }
        return FitResult(
            facts=facts,
            state=dict(vars(parameters)),
            bank=MemoryBank(centres, embedding="descriptor", origin=None),
            unseen=unseen if len(unseen) else None,
        )

    def prepare(self, group: FittedGroup) -> "CFADetector":
        """Return the descriptor, and the exact search that is fast for its queries.

        The general choice is made by searching for rows of the bank. These lie nearly in a few
        dimensions, descriptors of images do not: what is chosen may take six times as long.
        """
        search = group.search()
        if isinstance(search, ChosenSearch):
            search = search_among(search.dense.bank)
        return CFADetector(self, Parameters(**group.state()), search)

    def _descent(self, seed: int, unseen: np.ndarray) -> Descent:
        return Descent(
            epochs=self.epochs,
            batch=self.training_batch,
            rate=self.learning_rate,
            decay=self.weight_decay,
            seed=seed,
            unseen=unseen,
        )

    def _start(self, corpus: Corpus, seed: int) -> Parameters:
        channels = sum(shape[-1] for shape in corpus.shapes.values())
        if channels < self.gamma_d:
            raise ConfigError(
                f"method.gamma_d={self.gamma_d} leaves nothing of {channels} channels; lower it"
            )
        rng = np.random.default_rng(seed)
        return Parameters.drawn(channels, channels // self.gamma_d, _FIRST_RADIUS, rng)

    def _centres(
        self, corpus: Corpus, start: Parameters, unseen: np.ndarray, seed: int
    ) -> Float32[np.ndarray, "bank dim"]:
        """Return the mean descriptor of each location, which is the descriptor of the means."""
        sums = corpus.reduce(partial(sum_images, leave_out=unseen), add)
        count = corpus.images - len(unseen)
        means = {name: (total / count).astype(np.float32) for name, total in sums.items()}
        with one_thread_each(1) as pool:
            centres: np.ndarray = pool.submit(descriptors, means, start).result()
        wanted, least = len(centres) // self.gamma_c, self.neighbours + self.hard_negatives
        if wanted < least:
            raise ConfigError(
                f"{len(centres)} locations and method.gamma_c={self.gamma_c} make {wanted} "
                f"centres, and the loss takes {least}; lower gamma_c or name a finer layer"
            )
        return centres if self.gamma_c == 1 else compressed(centres, wanted, seed)


@dataclass(frozen=True)
class CFADetector:
    """A group's trained descriptor, and its centres."""

    method: CFA
    parameters: Parameters
    search: Search

    def score(
        self,
        embeddings: Arrays,
        own: OwnPart | None = None,  # noqa: ARG002 - nothing in the model is of single images
    ) -> Scores:
        """Return of each patch softmin(d)_1 d_1, d its distances to the K nearest centres."""
        found = []
        # One by one and on one thread: the last bits of a product depend on rows and threads.
        with one_thread_each(1) as pool:
            for number in range(len(embeddings["layer0"])):
                image = {name: array[number] for name, array in embeddings.items()}
                patches = pool.submit(descriptors, image, self.parameters).result()
                distances, _ = self.search.nearest(patches, self.method.neighbours)
                found.append(softmin_scores(distances))
        rows, columns = grid_of(embeddings)
        maps = np.array(found, np.float32).reshape(len(found), rows, columns)
        return Scores(smoothed_peaks(maps), maps)


@dataclass(frozen=True)
class _LocalProgress:
    """Progress in this process; a copy elsewhere is silent, as what shows it does not travel."""

    tell: Progress | None

    def __call__(self, done: int, total: int) -> None:
        if self.tell is not None:
            self.tell(done, total)

    def __reduce__(self) -> tuple[type["_LocalProgress"], tuple[None]]:
        return _LocalProgress, (None,)


@dataclass(frozen=True)
class _Training:
    """What each worker does in step with the others."""

    method: CFA
    centres: Float32[np.ndarray, "bank dim"]
    start: Parameters
    descent: Descent
    progress: _LocalProgress

    def __call__(self, peers: Peers, reader: EmbeddingReader, notes: Notes) -> None:
        method = self.method
        loss = Loss(method.neighbours, method.hard_negatives, method.nu, method.alpha)
        spheres = Hyperspheres.around(self.centres, loss, threads=peers.threads)

        def gradient(image: Arrays, flat: np.ndarray) -> tuple[float, np.ndarray]:
            return spheres.gradient(by_layer(image), Parameters.of(flat, self.start.dim))

        self.descent.run(self.start.flat(), gradient, (peers, reader, notes), self.progress)


def held_out(images: int, fraction: float) -> Int64[np.ndarray, " images"]:
    """Return which of the images to leave out: that fraction, rounded down, evenly spread.

    None, where they are fewer than 5.
    """
    # 0.29 * 100 is 28.999999999999996.
    count = min(int(images * fraction + 1e-9), images - 1)
    count = count if count >= _LEAST_HELD_OUT else 0
    return (2 * np.arange(count) + 1) * images // max(1, 2 * count)


def by_layer(image: Arrays) -> list[Tensor]:
    """Return one image's maps, in the order of the layers."""
    # A copy: what was read from a file is read-only, which torch warns of.
    return [torch.tensor(image[f"layer{number}"]) for number in range(len(image))]


def grid_of(embeddings: Arrays) -> tuple[int, int]:
    """Return the finest grid of all layers."""
    rows, columns = max((a.shape[1:3] for a in embeddings.values()), key=lambda g: g[0] * g[1])
    return rows, columns


def descriptors(image: Arrays, parameters: Parameters) -> Float32[np.ndarray, "locations dim"]:
    """Return the descriptor of each location of an image."""
    weight, bias = torch.tensor(parameters.weight), torch.tensor(parameters.bias)
    found: np.ndarray = describe(by_layer(image), weight, bias).numpy()
    return found


def softmin_scores(
    distances: Float32[np.ndarray, "patches neighbours"],
) -> Float64[np.ndarray, " patches"]:
    """Return softmin(d)_1 d_1 of each patch: nearest first, so that no exponential overflows."""
    nearest = distances[:, :1].astype(np.float64)
    scores: np.ndarray = nearest[:, 0] / np.exp(nearest - distances).sum(axis=1)
    return scores


def sum_images(
    before: Arrays | None, embeddings: Arrays, first: int, *, leave_out: np.ndarray
) -> Arrays:
    """Return the sums with these images, in float64, without the images left out."""
    count = len(embeddings["layer0"])
    kept = np.isin(np.arange(first, first + count), leave_out, invert=True)
    own = {name: array[kept].sum(axis=0, dtype=np.float64) for name, array in embeddings.items()}
    return own if before is None else add(before, own)


def add(left: Arrays, right: Arrays) -> Arrays:
    """Return the sums of two."""
    return {name: left[name] + right[name] for name in left}


def compressed(
    centres: Float32[np.ndarray, "locations dim"], count: int, seed: int
) -> Float32[np.ndarray, "bank dim"]:
    """Return the means of k-means clusters of the centres."""
    # On one thread: several add up their parts of a mean in the order in which they finish.
    with threadpool_limits(1):
        clusters = KMeans(count, max_iter=3000, n_init="auto", random_state=seed).fit(centres)
    means: np.ndarray = clusters.cluster_centers_
    return means


METHOD: type[Method] = CFA
