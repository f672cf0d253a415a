"""PaDiM: Mahalanobis distance to a Gaussian of normal features at each location.

Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR 2021 workshops (arXiv 2011.08785).

At each location of the finest grid, mu and Sigma = 1 / (N - 1) sum (x - mu)(x - mu)^T + 0.01 I of a
random subset of the channels of all layers; M = sqrt((x - mu)^T Sigma^-1 (x - mu)).

Deliberate differences from the paper and its implementations:

* deeper layers are repeated to the finest grid (nearest), as in the implementations; the paper does
  not say how;
* the image score is the largest M of the smoothed patch grid; implementations upsample the grid
  first, and smooth by 4 pixels, which are 1 of a grid at a quarter of the image. Unsmoothed it
  finds less: image AUROC 0.769 instead of 0.792 on the tile images;
* images can join and leave a fitted model: Sigma is had back from its whitening, of which float32
  loses a few parts in a million (`covariance_of`), and nothing is stored for it. Where most images
  leave, that is much of what is left: then the rest is to be fitted again;
* which channels were drawn is not stored: it follows from the seed, which the model records, by a
  hash (`chosen_channels`);
* `dimensions` is 100 for every backbone unless it is set, as the paper has it for ResNet-18. With
  its 550 for WideResNet-50 (preset `padim_paper`) a model is 1.9 GB a group.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.maths.gaussian import (
    Moments,
    covariance_of,
    in_blocks,
    merge,
    merge_rows,
    packed,
    unpacked,
    whitener,
    without,
    without_all,
)
from patchlake.pipeline.maths.smoothing import smoothed_peaks
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import (
    NO_BANK,
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus

# Images of one product. Their number is fixed, and missing ones are zero: the last bits of a
# product can depend on how many columns it has.
_IMAGES_AT_ONCE = 16
# Share of a model's images that must stay: what float32 loses counts 20 times as much then. Of 757
# tiles, distances were off by 2e-6 where 76 stayed, by 1e-5 where 38 did, and by 3e-4 where 8 did.
_LEAST_LEFT = 0.05
# A worker merges two states, in the memory of one; one more for what is being computed.
_STATES_HELD = 3


@runtime_checkable
class MomentsChange(Protocol):
    """What images that join or leave make of the earlier moments: `merge` or `without`."""

    def __call__(self, earlier: Moments, images: Moments, /, *, threads: int) -> Moments:
        """Return the moments of those that are there in the end."""


@dataclass(frozen=True, kw_only=True)
class PaDiM:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (1, 2, 3)
    calibration_images: ClassVar[int] = 200
    exact_because: ClassVar[str] = NO_BANK
    scored_together: ClassVar[bool] = False
    leaves_by_embedding: ClassVar[bool] = True

    # Channels that are kept, of all layers together.
    dimensions: Annotated[int, Field(ge=1)] = 100
    # What is added to the diagonal of each covariance: epsilon of the paper.
    regularisation: Annotated[float, Field(gt=0)] = 0.01

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:
        """Return the chosen channels (images, rows, columns, dim) on the finest grid."""
        grid = feature_maps[0].shape[-2:]
        channels = [maps.shape[1] for maps in feature_maps]
        chosen = chosen_channels(sum(channels), self.dimensions, seed)
        kept, first = [], 0
        for maps, count in zip(feature_maps, channels, strict=True):
            own = chosen[(chosen >= first) & (chosen < first + count)] - first
            picked = maps[:, torch.from_numpy(own).to(maps.device)]
            kept.append(functional.interpolate(picked, size=grid, mode="nearest"))
            first += count
        return {"patches": torch.cat(kept, dim=1).permute(0, 2, 3, 1)}

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:  # noqa: ARG002
        """Return mean and whitening of each location.

        O(images * locations * dim^2) time. State is locations * dim^2 float64 (250 MB for 56 x 56
        x 100). Where `memory_budget` does not hold it three times, locations are split over the
        workers, each of which reads the whole corpus for its own. Beside that a worker holds up to
        512 MiB of embeddings, and this process the model, a quarter of the state.
        """
        return self._whitened(corpus, None, merge, progress)

    def update(
        self,
        earlier: EarlierModel,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - the channels were chosen when images were embedded
        progress: Progress | None = None,
    ) -> FitResult:
        """Return the Gaussians of all images; costs as the fit of the corpus."""
        return self._whitened(corpus, earlier, merge, progress)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,
        *,
        seed: int,  # noqa: ARG002
    ) -> FitResult:
        """Return the Gaussians without the images of the corpus, which are those withdrawn."""
        assert corpus is not None
        assert corpus.images == len(images)
        left = earlier.images - corpus.images
        if left < _LEAST_LEFT * earlier.images:
            raise ConfigError(
                f"{left} of {earlier.images} images would be left: too few to compute their "
                "statistics from those of all in float32; fit again on these, or on others"
            )
        return self._whitened(corpus, earlier, without, None)

    def _whitened(
        self,
        corpus: Corpus,
        earlier: EarlierModel | None,
        change: MomentsChange,
        progress: Progress | None,
    ) -> FitResult:
        """Return the model of the corpus' moments, or of what `change` makes of the earlier."""
        height, width, dim = corpus.shapes["patches"]
        locations = height * width
        needed = _STATES_HELD * locations * dim * dim * 8
        count = min(locations, -(-needed // corpus.memory_budget))
        edges = np.linspace(0, locations, count + 1).astype(int)
        parts = [slice(begin, end) for begin, end in pairwise(edges.tolist())]
        # The workers of a cluster have one CPU each.
        threads = corpus.threads if corpus.processes == 1 else 1
        folds = [partial(_moments, at=at, threads=threads) for at in parts]
        joined = partial(merge, threads=threads, reuse=True)
        end = partial(_model_of, change=change, regularisation=self.regularisation)
        before = [None if earlier is None else _EarlierGaussians.of(earlier, at) for at in parts]
        if count == 1:
            whole = corpus.reduce(folds[0], joined)
            found = iter([end(whole, before=before[0], threads=corpus.threads)])
        else:
            ends = [partial(end, before=one, threads=threads) for one in before]
            found = corpus.reduce_apart(folds, joined, ends)
        state: Arrays = {
            "mean": np.empty((locations, dim), np.float32),
            "whitening": np.empty((locations, dim * (dim + 1) // 2), np.float32),
        }
        for number, (at, own) in enumerate(zip(parts, found, strict=True)):
            for name, array in state.items():
                array[at] = own[name]
            if progress is not None:
                progress(number + 1, count)
        state["count"] = own["count"]
        return FitResult(
            facts={"locations": float(locations), "dimensions": float(dim)}, state=state
        )

    def prepare(self, group: FittedGroup) -> "PaDiMDetector":
        """Return the Gaussians with their triangles unpacked, twice the size."""
        state = group.state()
        mean = state["mean"]
        return PaDiMDetector(
            mean, unpacked(state["whitening"], mean.shape[1]), int(state["count"][0])
        )


@dataclass(frozen=True)
class PaDiMDetector:
    """The Gaussian of each location of a group's images."""

    mean: Float32[np.ndarray, "locations dim"]
    whitening: Float32[np.ndarray, "locations dim dim"]
    # Training images.
    count: int

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return M of each location, and the maximum of the smoothed map.

        Training images (`own`) are measured against the Gaussians without themselves, each without
        its own, or all without all of them.
        """
        images, height, width, dim = embeddings["patches"].shape
        rows = embeddings["patches"].reshape(images, height * width, dim)
        distances = np.empty((images, height * width), np.float32)
        together = own is not None and own.together

        def fill(at: slice) -> None:
            if together:
                distances[:, at] = self._without_all(rows[:, at], at)
                return
            for begin in range(0, images, _IMAGES_AT_ONCE):
                block = slice(begin, begin + _IMAGES_AT_ONCE)
                distances[block, at] = self._distances(rows[block, at], at)

        in_blocks(fill, height * width, bytes_each=dim * dim * 4, threads=torch.get_num_threads())
        if own is not None and not together:
            distances = without_itself(distances, self.count)
        maps = distances.reshape(images, height, width)
        return Scores(smoothed_peaks(maps), maps)

    def _without_all(
        self, rows: Float32[np.ndarray, "images locations dim"], at: slice
    ) -> Float32[np.ndarray, "images locations"]:
        """Return the distances of training images to Gaussians without any of the m.

        At most sqrt((N - 1) / (N - m - 1)) times as much: Sigma is left as if it were still divided
        by N - 1, as its regularisation must not be scaled with the rest. Distances that are too
        small would break what verdicts promise; too large ones do not.
        """
        centred = (rows - self.mean[at]).transpose(1, 2, 0)
        whitened = (self.whitening[at] @ centred).astype(np.float64)
        left = self.count - len(rows)
        if left < 2:  # noqa: PLR2004 - as in `without_itself`
            squared = np.sum(whitened**2, axis=1)
        else:
            grams = whitened.transpose(0, 2, 1) @ whitened
            squared = without_all(grams, self.count, 1 / (self.count - 1))
        found: np.ndarray = np.sqrt(squared).T.astype(np.float32)
        return found

    def _distances(
        self, rows: Float32[np.ndarray, "images locations dim"], at: slice
    ) -> Float32[np.ndarray, "images locations"]:
        """Return |W (x - mu)| of at most `_IMAGES_AT_ONCE` images, at some locations."""
        centred = np.zeros((_IMAGES_AT_ONCE, *rows.shape[1:]), np.float32)
        np.subtract(rows, self.mean[at], out=centred[: len(rows)])
        # Of each location (dim, dim) by (dim, images).
        whitened = self.whitening[at] @ centred.transpose(1, 2, 0)
        squared = np.einsum("ldi,ldi->il", whitened, whitened)
        distances: np.ndarray = np.sqrt(squared[: len(rows)])
        return distances


def chosen_channels(total: int, count: int, seed: int) -> Int64[np.ndarray, " chosen"]:
    """Return `count` of the channels, rising: those with the lowest hashes.

    A choice by numpy's generator could change with numpy, and a model would then be scored with
    other channels than it was fitted on.
    """
    hashes = [hashlib.sha256(f"{seed}/{channel}".encode()).digest() for channel in range(total)]
    order = sorted(range(total), key=hashes.__getitem__)
    return np.sort(np.array(order[:count], np.int64))


def without_itself(
    distances: Float32[np.ndarray, "images locations"], count: int
) -> Float32[np.ndarray, "images locations"]:
    """Return the distances of images to the Gaussians that were fitted without them.

    With u = x - mu, leaving x out of N images moves the mean to mu - u / (N - 1) and takes
    N / (N - 1) u u^T from the scatter. By Sherman and Morrison (1950), with M^2 = u^T Sigma^-1 u,

        M'^2 = (N / (N - 1))^2 (N - 2) / (N - 1) M^2 / (1 - N / (N - 1)^2 M^2),

    but for the regularisation, of which N - 2 parts of N - 1 would have to be scaled as well.
    """
    if count <= 2:  # noqa: PLR2004 - the Gaussian of one image knows no spread
        return distances
    squared = distances.astype(np.float64) ** 2
    ratio = count / (count - 1)
    # 1 minus the image's own share of its distance, which with fewer images than channels is nearly
    # all of it: float32 distances say no more than six digits of that.
    rest = np.maximum(1 - ratio / (count - 1) * squared, 1e-6)
    left = ratio**2 * (count - 2) / (count - 1) * squared / rest
    without: np.ndarray = np.sqrt(left).astype(np.float32)
    return without


@dataclass(frozen=True)
class _EarlierGaussians:
    """The model of some locations that images join or leave."""

    images: int
    mean: Float32[np.ndarray, "locations dim"]
    whitening: Float32[np.ndarray, "locations entries"]

    @classmethod
    def of(cls, earlier: EarlierModel, at: slice) -> "_EarlierGaussians":
        return cls(earlier.images, earlier.state["mean"][at], earlier.state["whitening"][at])

    def moments(self, regularisation: float, threads: int) -> Moments:
        """Return the moments that the model was made of."""
        mean = self.mean.astype(np.float64)
        dim = mean.shape[1]
        scatter = covariance_of(unpacked(self.whitening, dim).astype(np.float64), threads=threads)
        scatter[:, np.arange(dim), np.arange(dim)] -= regularisation
        scatter *= self.images - 1
        return Moments(self.images, mean, scatter)


def _moments(
    before: Moments | None,
    embeddings: Arrays,
    first: int,  # noqa: ARG001
    *,
    at: slice,
    threads: int,
) -> Moments:
    patches = embeddings["patches"]
    rows = patches.reshape(len(patches), -1, patches.shape[-1])
    return merge_rows(before, rows[:, at], threads=threads)


def _model_of(
    moments: Moments,
    *,
    before: _EarlierGaussians | None,
    change: MomentsChange,
    regularisation: float,
    threads: int,
) -> Arrays:
    """Return the model of some locations from the moments of the corpus."""
    if before is not None:
        moments = change(before.moments(regularisation, threads), moments, threads=threads)
    # What comes from another process is read-only.
    covariance = moments.scatter if moments.scatter.flags.writeable else moments.scatter.copy()
    covariance /= max(1, moments.count - 1)
    diagonal = np.arange(covariance.shape[-1])
    covariance[:, diagonal, diagonal] += regularisation
    return {
        "mean": moments.mean.astype(np.float32),
        "whitening": packed(whitener(covariance, threads=threads, reuse=True)),
        "count": np.array([moments.count]),
    }


METHOD: type[Updatable] = PaDiM
