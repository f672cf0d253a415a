"""The parts that training images show, and how images score without all that their part gave.

A verdict promises something about an image of a new part. So each training image is measured
against the model without all shots of its part, and not without itself only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from patchlake.pipeline.groups.calibrate import Calibrator
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.index.threads import BlockThreads
from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.likeness import look_alikes
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.scores.calibration import Sample

# Images are measured so many times as often as for the colour scale: 1,000, and 200 of SPADE. It
# takes 99 parts to promise one false alarm in a hundred, and 999 one in a thousand.
JUDGED = 5
# Shots of one part that are scored at once, and that Gaussians leave out together: what they leave
# out of a larger part are so many, evenly spread.
_AT_ONCE = 64


@dataclass(frozen=True)
class Parts:
    """Of each image of a model the part that it shows, and what tells that."""

    # `part_id`, `look-alikes`, or `images`: each is taken for a part of its own.
    told_by: str
    # By number of the image.
    names: list[str]

    @classmethod
    def of(cls, members: Membership) -> "Parts":
        """Return those of the images in the model, by `part_id` where any of them has one."""
        ids = members.present.column("part_id").to_pylist()
        if any(one is not None for one in ids):
            # An image without one is a part of its own, whatever others are called.
            names = [f"image {n}" if one is None else f"part {one}" for n, one in enumerate(ids)]
            return cls("part_id", names)
        seen = members.present.column("thumbnail").combine_chunks()
        if seen.null_count or not len(seen):
            # Models of before thumbnails were kept.
            return cls("images", [f"image {number}" for number in range(len(ids))])
        grey = np.frombuffer(b"".join(seen.to_pylist()), np.uint8).reshape(len(seen), -1)
        return cls("look-alikes", [f"image {number}" for number in look_alikes(grey)])

    @property
    def numbers(self) -> Int64[np.ndarray, " images"]:
        """Of each image a number, equal within a part."""
        return np.asarray(np.unique(self.names, return_inverse=True)[1], np.int64)


def choose_by_part(
    candidates: Int64[np.ndarray, " candidates"],
    parts: Int64[np.ndarray, " images"],
    at_most: int,
) -> Int64[np.ndarray, " chosen"]:
    """Return candidates, rising: as many parts as possible, and then as many images of each.

    Args:
        candidates: Numbers of images.
        parts: Of all images of the model.
        at_most: How many; of those that are alike in rank, evenly spread ones are taken.
    """
    seen: dict[int, int] = {}
    ranks = np.empty(len(candidates), np.int64)
    for at, part in enumerate(parts[candidates].tolist()):
        ranks[at] = seen[part] = seen.get(part, -1) + 1
    if len(candidates) <= at_most:
        return candidates
    limit = np.sort(ranks)[at_most]
    whole, last = candidates[ranks < limit], candidates[ranks == limit]
    some = np.linspace(0, len(last) - 1, at_most - len(whole)).round().astype(int)
    return np.sort(np.concatenate([whole, last[some]]))


@dataclass(frozen=True)
class PartCalibrator:
    """Measures training images as if their parts were new."""

    calibrator: Calibrator
    corpus: StoredCorpus
    # Of all images of the model; `before` of them come before those of the corpus.
    parts: Int64[np.ndarray, " images"]
    before: int = 0

    def measure(self, chosen: Int64[np.ndarray, " chosen"], threads: int) -> list[Sample]:
        """Return the samples of images of the corpus, by their numbers in the model, rising.

        Passed over are images whose part has all that the model knows, and those whose part cannot
        leave it: of Gaussians that is one with images that joined before.

        Args:
            chosen: The images.
            threads: In which parts are measured side by side.
        """
        of_part: dict[int, list[int]] = {}
        for image in chosen.tolist():
            of_part.setdefault(int(self.parts[image]), []).append(image)
        with on_one_thread():
            found = BlockThreads(threads).map(self._part, list(of_part.values()))
        return sorted((one for some in found for one in some), key=lambda one: one.image)

    def _part(self, images: list[int]) -> list[Sample]:
        """Return the samples of images of one part."""
        result = self.calibrator.result
        if result.unseen is not None:
            return self._scored(images, images, None)
        every = np.flatnonzero(self.parts == self.parts[images[0]])
        bank = result.bank
        if len(every) == len(self.parts):
            return []
        if bank is not None and bank.origin is not None:
            own = OwnPart.of(every.tolist(), bank, together=True)
            return [] if len(own.rows) == len(bank.rows) else self._scored(images, images, own)
        if every[0] < self.before:
            return []
        if len(every) > _AT_ONCE:
            spread = np.linspace(0, len(every) - 1, _AT_ONCE // 2).round().astype(int)
            every = np.union1d(every[spread], images[: _AT_ONCE // 2])
        leaving = every.tolist()
        wanted = [image for image in images if image in set(leaving)]
        return self._scored(leaving, wanted, OwnPart.of(leaving, bank, together=True))

    def _scored(
        self, images: Sequence[int], wanted: Sequence[int], own: OwnPart | None
    ) -> list[Sample]:
        found: list[Sample] = []
        for begin in range(0, len(images), _AT_ONCE):
            some = images[begin : begin + _AT_ONCE]
            in_corpus = [image - self.before for image in some]
            arrays = [arrays for _, arrays in self.corpus.some(in_corpus)]
            samples = self.calibrator.samples(arrays, some, own)
            found += [sample for sample in samples if sample.image in set(wanted)]
        return found


def judged(
    calibrator: Calibrator, corpus: StoredCorpus, members: Membership, at_most: int, threads: int
) -> Membership:
    """Return the members of a model with the samples by part of those that have just joined.

    Earlier samples are kept as they were measured, thinned to make room.

    Args:
        calibrator: Of the model with all of them.
        corpus: Those that have just joined, the last of the members.
        members: All.
        at_most: Samples.
        threads: In which it is done.
    """
    before = members.count - corpus.images
    parts = Parts.of(members)
    unseen = calibrator.result.unseen
    candidates = np.arange(before, members.count) if unseen is None else unseen + before
    share = max(1, at_most * len(candidates) // max(1, members.count)) if before else at_most
    chosen = choose_by_part(candidates, parts.numbers, share)
    new = PartCalibrator(calibrator, corpus, parts.numbers, before).measure(chosen, threads)
    earlier = members.part_samples()
    room = max(0, at_most - len(new))
    if len(earlier) > room:
        kept = np.linspace(0, len(earlier) - 1, room).round().astype(int)
        earlier = [earlier[number] for number in kept]
    return members.judged(parts.names, [*earlier, *new])


def verdict_arrays(members: Membership) -> Arrays:
    """Return what verdicts go by: of each image measured by part its score, its part and itself.

    Empty where fewer than two parts were measured: nothing can be promised then.
    """
    samples = members.part_samples()
    numbers = pa.array([one.image for one in samples], pa.int64())
    rows = members.present.take(numbers)
    names = rows.column("part").to_pylist()
    if len(set(names)) < 2:  # noqa: PLR2004 - one part has no other to be compared with
        return {}
    contents = rows.column("sha256").to_pylist()
    digests = [bytes.fromhex(one[:16]) if one else bytes(8) for one in contents]
    arrays: Arrays = {
        "scores": np.array([one.score for one in samples], np.float32),
        "parts": np.unique(names, return_inverse=True)[1].astype(np.int32),
        "images": np.frombuffer(b"".join(digests), ">i8").astype(np.int64),
    }
    if all(one.peak is not None for one in samples):
        arrays["peaks"] = np.array([one.peak for one in samples], np.float32)
    return arrays
