"""PatchCore: distance to the nearest patch of a coreset of normal patches.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265).

Deliberate differences from the paper:

* the coreset is selected in the full space, not in a random projection (`pipeline.maths.coreset`);
* the image score is s* (Eq. 6) by default. `image_score: reweighted` is Eq. 7; the paper does not
  state b, 9 is what others use. On real tiles the two agree to 0.001 AUROC;
* layers are joined by concatenation unless they have the 512 and 1024 channels for which the
  authors' 1024 dimensions are defined (`pipeline.features.patches`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from pipeline.features import patches
from pipeline.maths import coreset
from pipeline.methods.contract import Arrays, Corpus, Fitted, Progress, Scores, Search


@dataclass(frozen=True, kw_only=True)
class PatchCore:
    """The settings under `method`."""

    # None: official where it is defined, else concat.
    embedding: Literal["official", "concat"] | None = None
    # p of Eq. 2; the official embedding is defined for 3.
    neighbourhood: Annotated[int, Field(ge=1, le=15, multiple_of=1)] = 3
    coreset_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01
    # A fraction of the patches makes fits quadratic in the images; this caps it.
    max_bank_rows: Annotated[int, Field(ge=1)] = 100_000
    image_score: Literal["max", "reweighted"] = "max"
    # b of Eq. 7.
    reweight_neighbours: Annotated[int, Field(ge=2)] = 9

    def embed(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Return patch embeddings (images, rows, columns, dim)."""
        channels = tuple(maps.shape[1] for maps in feature_maps)
        is_official = channels == patches.OFFICIAL_CHANNELS and self.neighbourhood == 3  # noqa: PLR2004
        if self.embedding == "official" or (self.embedding is None and is_official):
            return patches.official_embedding(feature_maps)
        return patches.concat_embedding(feature_maps, self.neighbourhood)

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> Fitted:
        """Return the coreset of all patches (algorithm 1) and where each row is from.

        Holds all patches of the group in memory, twice.
        """
        rows, origin = _all_patches(corpus)
        wanted = max(1, int(len(rows) * self.coreset_fraction))
        size = min(wanted, self.max_bank_rows)
        start = int(np.random.default_rng(seed).integers(len(rows)))
        selected = coreset.greedy(rows, size, start=start, progress=progress)
        facts = {
            "patches": float(len(rows)),
            "bank_rows": float(len(selected.indices)),
            "covering_radius": float(selected.radii[-1]),
        }
        return Fitted(
            state={"radii": selected.radii},
            memory_bank=rows[selected.indices],
            origin=origin[selected.indices],
            facts=facts,
        )

    def score(
        self,
        embeddings: Float32[np.ndarray, "images rows columns dim"],
        state: Arrays,  # noqa: ARG002 - the bank is all there is
        search: Search,
        *,
        ignore: Int64[np.ndarray, " ignored"] | None = None,
    ) -> Scores:
        """Return s* (Eq. 6) or s (Eq. 7) of each image, and every patch's distance to the bank."""
        images, height, width, dim = embeddings.shape
        queries = embeddings.reshape(-1, dim)
        distances, rows = search.nearest(queries, 1, ignore=ignore)
        by_image = distances.reshape(images, height * width)
        worst = by_image.argmax(axis=1)
        image_scores = by_image.max(axis=1)
        if self.image_score == "reweighted":
            number = np.arange(images) * height * width + worst
            image_scores = self._reweighted(queries[number], rows[number, 0], image_scores, search)
        return Scores(image_scores, by_image.reshape(images, height, width))

    def _reweighted(
        self,
        test_patches: Float32[np.ndarray, "images dim"],
        nearest_rows: Int64[np.ndarray, " images"],
        distances: Float32[np.ndarray, " images"],
        search: Search,
    ) -> Float32[np.ndarray, " images"]:
        """Return Eq. 7: (1 - exp|m_test - m*| / sum over N_b(m*) of exp|m_test - m|) s*.

        N_b(m*) are the b bank rows nearest to m*, itself among them. By log-sum-exp, since exp
        overflows float32 at a distance of 88. With b = 1 the formula would give 0; it means s*.
        """
        b = min(self.reweight_neighbours, search.size)
        if b == 1 or len(test_patches) == 0:
            return distances
        _, neighbours = search.nearest(search.vectors(nearest_rows), b)
        around = search.vectors(neighbours).astype(np.float64) - test_patches[:, None, :]
        lengths = np.linalg.norm(around, axis=2)
        largest = lengths.max(axis=1, keepdims=True)
        log_sum = largest[:, 0] + np.log(np.exp(lengths - largest).sum(axis=1))
        weight = 1 - np.exp(distances - log_sum)
        reweighted: np.ndarray = (weight * distances).astype(np.float32)
        return reweighted


def _all_patches(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Return (patches, dim) and each patch's (image, y, x)."""
    rows: np.ndarray | None = None
    filled = 0
    for embeddings in corpus.embeddings():
        images, height, width, dim = embeddings.shape
        if rows is None:
            rows = np.empty((corpus.images * height * width, dim), np.float32)
            grid = (corpus.images, height, width)
        rows[filled : filled + images * height * width] = embeddings.reshape(-1, dim)
        filled += images * height * width
    assert rows is not None, "a corpus has at least one image"
    return rows, np.stack(np.unravel_index(np.arange(len(rows)), grid), axis=1)


METHOD = PatchCore
