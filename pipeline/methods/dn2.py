"""DN2: distance of an image's pooled feature to the nearest of normal images.

Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020 (arXiv 2002.10445).

The score is the mean distance to the k nearest training images, k = 2 in the paper. There is no
anomaly map. The pooled feature is the spatial mean of the deepest of `backbone.layers`.

Deliberate differences: distances are not squared, as public code has them, in whose mean the
farthest of the k counts most; for k = 1 the order is the same. The paper's variants for groups of
images and for contaminated training sets are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from patchlake.pipeline.config import Layers
from patchlake.pipeline.features.patches import pooled
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart, nearest_others
from patchlake.pipeline.methods.shared.contract import (
    EarlierModel,
    FitResult,
    FittedGroup,
    Progress,
    Scores,
    Updatable,
)
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus


@dataclass(frozen=True, kw_only=True)
class DN2:
    """The settings under `method`."""

    layers: ClassVar[Layers] = (4,)
    calibration_images: ClassVar[int] = 200
    exact_because: ClassVar[str] = ""
    scored_together: ClassVar[bool] = False
    leaves_by_embedding: ClassVar[bool] = False

    # k of the paper: training images whose distance counts.
    neighbours: Annotated[int, Field(ge=1)] = 2

    def embed(self, feature_maps: Sequence[Tensor], *, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the pooled feature (images, channels) of the deepest layer."""
        return {"pooled": pooled(feature_maps[-1])}

    def fit(
        self,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - nothing is drawn
        progress: Progress | None = None,  # noqa: ARG002 - one pass over a few KB an image
    ) -> FitResult:
        """Return the features of all training images: 8 KB an image of 2048 channels."""
        bank = MemoryBank.of_images(corpus, "pooled")
        return FitResult(facts={"bank_rows": float(len(bank.rows))}, bank=bank)

    def update(
        self,
        earlier: EarlierModel,
        corpus: Corpus,
        *,
        seed: int,  # noqa: ARG002 - as in `fit`
        progress: Progress | None = None,  # noqa: ARG002
    ) -> FitResult:
        """Return the features of all images: what `fit` makes of them in this order."""
        assert earlier.bank is not None
        bank = earlier.bank.joined(MemoryBank.of_images(corpus, "pooled"), earlier.images)
        return FitResult(facts={"bank_rows": float(len(bank.rows))}, bank=bank)

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,  # noqa: ARG002 - a row is an image
        *,
        seed: int,  # noqa: ARG002
    ) -> FitResult:
        """Return the features of the images that stay."""
        assert earlier.bank is not None
        bank = earlier.bank.without(images)
        return FitResult(facts={"bank_rows": float(len(bank.rows))}, bank=bank)

    def prepare(self, group: FittedGroup) -> "DN2Detector":
        """Return the search among the features of all training images."""
        return DN2Detector(self, group.search())


@dataclass(frozen=True)
class DN2Detector:
    """The features of a group's training images, a row each."""

    method: DN2
    search: Search

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return each image's mean distance to its nearest training images.

        Of fewer training images than `neighbours`, all count.
        """
        distances, _ = nearest_others(
            self.search, embeddings["pooled"], self.method.neighbours, own
        )
        return Scores(distances.mean(axis=1, dtype=np.float64).astype(np.float32), None)


METHOD: type[Updatable] = DN2
