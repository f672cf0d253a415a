"""calibrate: how training images of a group score, each measured without its own part in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from pipeline.images.geometry import Geometry
from pipeline.methods.contract import Fitted, Method, Model, Scores
from pipeline.scores.calibration import Sample
from pipeline.stages.corpus import StoredCorpus


@dataclass(frozen=True)
class Calibrator:
    """A fitted group, and how its training images are measured."""

    method: Method
    fitted: Fitted
    # Loaded from `fitted`, and prepared.
    model: Model
    geometry: Geometry

    def measure(
        self, corpus: StoredCorpus, chosen: Int64[np.ndarray, " chosen"], *, before: int = 0
    ) -> Iterator[Sample]:
        """Yield the samples of some images of a corpus, scored as if they were new.

        An image whose rows are the whole bank cannot be, and is passed over.

        Args:
            corpus: Where the embeddings are.
            chosen: Numbers of images in the corpus.
            before: Images of the model that are not of the corpus; their numbers come first.
        """
        for image, one in corpus.some(chosen.tolist()):
            own = self._own_rows(before + image)
            if self.model.search is None or len(own) < self.model.search.size:
                ignore = None if self.fitted.unseen is not None else own
                yield self._sample(
                    before + image, self.method.score(one, self.model, ignore=ignore)
                )

    def _sample(self, image: int, scores: Scores) -> Sample:
        score = float(scores.image_scores[0])
        if scores.anomaly_maps is None:
            return Sample(image, score)
        grid = scores.anomaly_maps[0]
        height, width = self.geometry.input_size
        frame = self.geometry.to_frame(grid, (width, height), (height, width))
        exact = grid.astype(np.float64)
        return Sample(image, score, float(frame.max()), float(exact.mean()), float(exact.std()))

    def _own_rows(self, image: int) -> Int64[np.ndarray, " rows"]:
        bank = self.fitted.bank
        if bank is None or bank.origin is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(bank.origin[:, 0] == image)


def spread(
    candidates: Int64[np.ndarray, " candidates"], of: int, at_most: int
) -> Int64[np.ndarray, " chosen"]:
    """Return candidates, evenly spread: of a whole of `of` images there would be `at_most`."""
    step = max(1, -(-of // at_most))
    return candidates[::step]
