"""calibrate: how training images of a group score, each measured without its own part in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.methods.shared.contract import Arrays, Fitted, Method, Model, Scores
from patchlake.pipeline.scores.calibration import Sample

# Images scored at once where none has rows of its own in the memory bank: a product of PaDiM takes
# as long for one as for 16. Their embeddings, twice, are 40 MB with 56 x 56 x 100.
_IMAGES_AT_ONCE = 16


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
        bank = self.fitted.bank
        origin = None if bank is None else bank.origin
        some = corpus.some(chosen.tolist())
        while batch := list(islice(some, _IMAGES_AT_ONCE if origin is None else 1)):
            images = [before + image for image, _ in batch]
            own = np.flatnonzero([] if origin is None else origin[:, 0] == images[0])
            if self.model.search is None or len(own) < self.model.search.size:
                ignore = None if self.fitted.unseen is not None else own
                embeddings = _joined([arrays for _, arrays in batch])
                scores = self.method.score(embeddings, self.model, ignore=ignore)
                yield from (self._sample(scores, at, image) for at, image in enumerate(images))

    def _sample(self, scores: Scores, at: int, image: int) -> Sample:
        score = float(scores.image_scores[at])
        if scores.anomaly_maps is None:
            return Sample(image, score)
        grid = scores.anomaly_maps[at]
        height, width = self.geometry.input_size
        frame = self.geometry.to_frame(grid, (width, height), (height, width))
        exact = grid.astype(np.float64)
        return Sample(image, score, float(frame.max()), float(exact.mean()), float(exact.std()))


def _joined(images: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([arrays[name] for arrays in images]) for name in images[0]}


def spread(
    candidates: Int64[np.ndarray, " candidates"], of: int, at_most: int
) -> Int64[np.ndarray, " chosen"]:
    """Return candidates, evenly spread: of a whole of `of` images there would be `at_most`."""
    step = max(1, -(-of // at_most))
    return candidates[::step]
