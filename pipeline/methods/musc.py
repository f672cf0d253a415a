"""MuSc: images of one night, without labels, each compared with the others.

Li, Huang, Xue, Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with
Mutual Scoring of the Unlabeled Images", ICLR 2024 (arXiv 2401.16753).

Each layer's map is standardised, and its patches are means over squares of r x r patches, r = 1, 3
and 5, of unit length (LNAMD, section 3.1). By each other image a patch has the distance to its
nearest patch there; the mean of the lowest 30 % of these is its score (MSM, section 3.2, and
`maths.mutual`), and the map is the mean over layers and r. The score of an image is its map's
largest value. A fit learns nothing: it keeps images to compare with, the *references*.

Deliberate differences from the paper and the authors' code:

* an image is compared with at most `references` images of its group, those whose thumbnails have
  the lowest SHA-256, and not with all: so time grows with the night and not with its square, memory
  with neither, and what is chosen hangs on no order. The authors divide a set into subsets;
* an image is not compared with other shots of its part either, of which a defect shows in all;
* of fewer than four others one counts, where the authors' code finds 30 % of them to be none;
* re-scoring by similar images (RsCIN, section 3.3) is left out: it takes the scores of a whole
  night before any is known;
* layers keep grids of their own and maps are joined bilinearly on the finest, as convolutional
  layers differ in size; a vision transformer's do not;
* features are rounded to float16, of the references as of what is compared.

A score takes 2 R P^2 dim operations a layer and r, of P patches and R references: 9 GFLOP with
lite0 at 224 x 224 and 50 references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.config import Layers
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.patches import mean_of_square
from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.mutual import asking, compared, mean_of_lowest, nearest_distances
from patchlake.pipeline.methods.shared.bank import OwnPart, closed_up
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
from patchlake.pipeline.methods.shared.maps import mean_on_finest_grid
from patchlake.pipeline.methods.shared.marks import Marks

# Of fewer images an image has less than four others, and the lowest 30 % are none.
_LEAST = 5
_NUMBERS, _LIMIT, _MAPS = "numbers", "limit", "maps."


@dataclass(frozen=True, kw_only=True)
class MuSc:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (2, 3)
    # Each is as dear as scoring an image.
    calibration_images: ClassVar[int] = 20
    exact_because: ClassVar[str] = NO_BANK
    scored_together: ClassVar[bool] = False
    leaves_by_embedding: ClassVar[bool] = False
    is_mutual: ClassVar[bool] = True

    # R: images that an image is compared with, at most.
    references: Annotated[int, Field(ge=_LEAST)] = 50
    # Sides r of the squares over which patches are means: 1, 3, ... up to this one. Odd.
    neighbourhood: Annotated[int, Field(ge=1)] = 5
    # Of the distances to the references, the share that counts: the lowest.
    nearest_share: Annotated[float, Field(gt=0, le=1)] = 0.3

    def __post_init__(self) -> None:
        if self.neighbourhood % 2 == 0:
            raise ValueError(
                f"neighbourhood={self.neighbourhood} is even, and a square around a patch has an "
                f"odd side: use {self.neighbourhood - 1} or {self.neighbourhood + 1}"
            )

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return for each layer and r the patches (images, rows, columns, channels) of length 1."""
        embedded = {}
        for number, maps in enumerate(feature_maps):
            standard = functional.layer_norm(maps, maps.shape[1:])
            for side in range(1, self.neighbourhood + 1, 2):
                patches = functional.normalize(mean_of_square(standard, side), dim=1)
                rounded = patches.half().float()
                embedded[f"layer{number}.r{side}"] = rounded.permute(0, 2, 3, 1)
        return embedded

    def fit(
        self,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - nothing is drawn
        progress: Progress | None = None,  # noqa: ARG002 - one pass that copies
    ) -> FitResult:
        """Return the references among these images.

        Raises:
            ConfigError: if there are fewer than five different images.
        """
        marks = corpus.marks()
        chosen = marks.lowest(self.references)
        _require_enough(len(chosen), corpus.images)
        return self._result(_References.of(corpus, marks, chosen, 0), marks.limit)

    def update(
        self,
        earlier: EarlierModel,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - as in `fit`
        progress: Progress | None = None,  # noqa: ARG002
    ) -> FitResult:
        """Return the references among those of before and these images.

        They are those that a fit of all images would have, unless references were withdrawn.
        """
        marks = corpus.marks()
        new = marks.lowest(self.references)
        every = _References.from_state(earlier.state).joined(
            _References.of(corpus, marks, new, earlier.images)
        )
        limit = every.marks.limit
        return self._result(every.take(every.marks.lowest(self.references)), limit)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - a reference is an image
        *,
        seed: int,  # noqa: ARG002
    ) -> FitResult:
        """Return the references that stay; no other image takes the place of one that left."""
        every = _References.from_state(earlier.state)
        left = every.take(np.flatnonzero(~np.isin(every.numbers, images)))
        remaining = earlier.images - len(images)
        # Where not all images are references, fewer of these will do: two, since none is compared
        # with itself.
        is_all = len(every.numbers) == earlier.images
        _require_enough(len(left.numbers), remaining, _LEAST if is_all else 2)
        renumbered = _References(closed_up(left.numbers, images), left.marks, left.maps)
        return self._result(renumbered, earlier.state[_LIMIT])

    def _result(self, kept: "_References", limit: np.ndarray) -> FitResult:
        count = len(kept.numbers)
        shapes = [array.shape[1:] for array in kept.maps.values()]
        flop = sum(2 * count * (rows * columns) ** 2 * dim for rows, columns, dim in shapes)
        facts: dict[str, float | str] = {
            "references": float(count),
            "gflop_per_image": flop / 1e9,
        }
        return FitResult(facts, kept.to_state() | {_LIMIT: limit})

    def prepare(self, group: FittedGroup) -> "MuScDetector":
        """Return the references, as they are stored."""
        state = group.state()
        return MuScDetector(self, _References.from_state(state), state[_LIMIT])


@dataclass(frozen=True)
class _References:
    """Images that others are compared with, in the order of their digests."""

    # In the model, as they joined it.
    numbers: Int64[np.ndarray, " references"]
    marks: Marks
    # Of each layer and r, float16 (references, rows, columns, channels).
    maps: Arrays

    @classmethod
    def of(
        cls, corpus: Corpus, marks: Marks, chosen: Int64[np.ndarray, " chosen"], before: int
    ) -> "_References":
        """Return images of a corpus, given by number; `before` others are in the model already."""
        rising = np.sort(chosen)
        parts = list(corpus.each(partial(_some, chosen=rising)))
        at = np.searchsorted(rising, chosen)
        maps = {name: np.concatenate([part[name] for part in parts])[at] for name in parts[0]}
        return cls(chosen + before, marks.take(chosen), maps)

    @classmethod
    def from_state(cls, state: Arrays) -> "_References":
        maps = {n.removeprefix(_MAPS): a for n, a in state.items() if n.startswith(_MAPS)}
        return cls(state[_NUMBERS], Marks.from_state(state), dict(sorted(maps.items())))

    def to_state(self) -> Arrays:
        maps = {f"{_MAPS}{name}": array for name, array in self.maps.items()}
        return {_NUMBERS: self.numbers} | self.marks.to_state() | maps

    def joined(self, others: "_References") -> "_References":
        return _References(
            np.concatenate([self.numbers, others.numbers]),
            self.marks.joined(others.marks),
            {name: np.concatenate([maps, others.maps[name]]) for name, maps in self.maps.items()},
        )

    def take(self, which: Int64[np.ndarray, " some"]) -> "_References":
        maps = {name: array[which] for name, array in self.maps.items()}
        return _References(self.numbers[which], self.marks.take(which), maps)


@dataclass(frozen=True)
class MuScDetector:
    """The references of a group."""

    method: MuSc
    references: _References
    # Of `Marks.own`.
    limit: np.ndarray

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return each image's scores by the references that are not its own, if there are others.

        O(references * patches^2 * channels) an image and layer.
        """
        images = len(next(iter(embeddings.values())))
        numbers = self.references.numbers
        excluded = np.zeros((images, len(numbers)), bool)
        if own is not None:
            is_own = numbers[np.newaxis] == own.images[:, np.newaxis]
            excluded[:] = is_own.any(axis=0) if own.together else is_own
        return self._score(embeddings, excluded)

    def score_apart(self, embeddings: Arrays, marks: Marks) -> Scores:
        """Return each image's scores, without what the references have of it and of its part."""
        return self._score(embeddings, marks.own(self.references.marks, self.limit))

    def _score(self, embeddings: Arrays, excluded: Bool[np.ndarray, "images references"]) -> Scores:
        # Where nothing else is left, what is the image's own is better than nothing.
        is_used = ~excluded | excluded.all(axis=1, keepdims=True)
        with on_one_thread():
            # Sorted, since in another order the last bits of sums are others.
            by_layer: dict[str, list[np.ndarray]] = {}
            for name in sorted(embeddings):
                grids = self._grids(embeddings[name], self.references.maps[name], is_used)
                by_layer.setdefault(name.partition(".")[0], []).append(grids)
        of_layers = [np.mean(some, axis=0) for some in by_layer.values()]
        maps = np.stack([mean_on_finest_grid(layers) for layers in zip(*of_layers, strict=True)])
        return Scores(maps.max(axis=(1, 2)), maps)

    def _grids(
        self,
        embedded: np.ndarray,
        references: np.ndarray,
        is_used: Bool[np.ndarray, "images references"],
    ) -> Float64[np.ndarray, "images rows columns"]:
        """Return the scores of the patches of one layer and r."""
        images, *grid, dim = embedded.shape
        queries = [asking(one.reshape(-1, dim)) for one in embedded]
        found: list[list[np.ndarray]] = [[] for _ in queries]
        for number, stored in enumerate(references):
            if not is_used[:, number].any():
                continue
            other = compared(stored.reshape(-1, dim).astype(np.float32))
            for image in np.flatnonzero(is_used[:, number]):
                found[image].append(nearest_distances(queries[image], other))
        share = self.method.nearest_share
        scores = [mean_of_lowest(np.stack(distances), share) for distances in found]
        return np.stack(scores).reshape(images, *grid)


def _some(embeddings: Arrays, first: int, *, chosen: Int64[np.ndarray, " chosen"]) -> Arrays:
    """Return those of a fragment's images that are chosen, by number, rising."""
    count = len(next(iter(embeddings.values())))
    at = chosen[(chosen >= first) & (chosen < first + count)] - first
    return {name: array[at].astype(np.float16) for name, array in embeddings.items()}


def _require_enough(different: int, images: int, least: int = _LEAST) -> None:
    if different < least:
        raise ConfigError(
            f"{different} different images of {images} are too few to be compared with one "
            f"another, which takes {least}: add images of the group, of this night or of earlier "
            "ones, and run it again"
        )


METHOD: type[Updatable] = MuSc
