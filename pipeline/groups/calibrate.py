"""calibrate: how training images of a group score, each measured without its own part in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import FitResult, GroupDetector, Scores
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.scores.calibration import Sample

# Images scored at once where none has rows of its own in the memory bank: a product of PaDiM takes
# as long for one as for 16. Their embeddings, twice, are 40 MB with 56 x 56 x 100.
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Calibrator:
    """A fitted group, and how its training images are measured."""

    result: FitResult
    # Prepared from the result.
    detector: GroupDetector
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
        bank = self.result.bank
        at_once = _IMAGES_AT_ONCE if bank is None or bank.origin is None else 1
        some = corpus.some(chosen.tolist())
        while batch := list(islice(some, at_once)):
            images = [before + image for image, _ in batch]
            own = OwnPart.of(images, bank)
            if bank is None or bank.has_others(own.rows):
                embeddings = _joined([arrays for _, arrays in batch])
                # Images that the fit has not seen have no part in the model.
                is_new = self.result.unseen is not None
                scores = self.detector.score(embeddings, None if is_new else own)
                interiors = corpus.interiors([image for image, _ in batch])
                yield from _samples(scores, self.geometry, images, interiors)

    def samples(
        self,
        images: Sequence[Arrays],
        numbers: Sequence[int],
        own: OwnPart | None,
        interiors: Sequence[Interior] = (),
    ) -> list[Sample]:
        """Return the samples of images, by their embeddings and numbers.

        Args:
            images: Embeddings of one image each.
            numbers: Of the same images, in the model.
            own: What they are not compared with; None if the model has nothing of them.
            interiors: What of each counts; none where all does.
        """
        scores = self.detector.score(_joined(images), own)
        return list(_samples(scores, self.geometry, numbers, interiors))


def _samples(
    scores: Scores, geometry: Geometry, numbers: Sequence[int], interiors: Sequence[Interior]
) -> Iterator[Sample]:
    """Yield the samples of images, whose maps are lowered outside as those that are scored are."""
    height, width = geometry.input_size
    for at, image in enumerate(numbers):
        score = float(scores.image_scores[at])
        if scores.anomaly_maps is None:
            yield Sample(image, score)
            continue
        grid = scores.anomaly_maps[at]
        exact = grid.astype(np.float64)
        if interiors:
            exact = exact[interiors[at].patches(grid.shape)]
            grid = interiors[at].within(grid)
        frame = geometry.to_frame(grid, (width, height), (height, width))
        yield Sample(image, score, float(frame.max()), float(exact.mean()), float(exact.std()))


def _joined(images: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([arrays[name] for arrays in images]) for name in images[0]}


def choose_evenly(
    candidates: Int64[np.ndarray, " candidates"], of: int, at_most: int
) -> Int64[np.ndarray, " chosen"]:
    """Return candidates, evenly spread: of a whole of `of` images there would be `at_most`."""
    step = max(1, -(-of // at_most))
    return candidates[::step]
