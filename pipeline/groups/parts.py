"""The parts that training images show, and how images score without all that their part gave.

A verdict promises something about an image of a new part. So each training image is measured
against the model without all shots of its part, and not without itself only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
from patchlake.pipeline.scores.calibration import Judged, Sample

# Images are measured so many times as often as for the colour scale: 1,000, and 200 of SPADE. It
# takes 99 parts to promise one false alarm in a hundred, and 999 one in a thousand.
JUDGED = 5
# Shots of a part that Gaussians can leave out together: time grows with their third power, and
# PaDiM has 1.3 MB of each.
_MOST_SHOTS = 64
# Images that are scored at once where each is scored by itself.
_AT_ONCE = 4
# Of the images that samples were measured with, the share that may leave before they count no more.
_MAY_LEAVE = 0.1


@dataclass(frozen=True)
class Parts:
    """Of each image of a model the part that it shows."""

    # By number of the image.
    names: list[str]

    @classmethod
    def of(cls, members: Membership) -> "Parts | None":
        """Return those of the images in the model; None where nobody can tell.

        Images with a `part_id` are of that part. Another one is of the part of what looks like it,
        and models of before thumbnails were kept do not know what that is.
        """
        ids: list[str | None] = members.present.column("part_id").to_pylist()
        if None not in ids:
            return cls([f"part {one}" for one in ids])
        seen = members.present.column("thumbnail").combine_chunks()
        if seen.null_count or not len(seen):
            return None
        grey = np.frombuffer(b"".join(seen.to_pylist()), np.uint8).reshape(len(seen), -1)
        alike = look_alikes(grey).tolist()
        named: dict[int, str] = {}
        for like, one in zip(alike, ids, strict=True):
            if one is not None:
                named.setdefault(like, f"part {one}")
        return cls(
            [
                named.get(like, f"image {like}") if one is None else f"part {one}"
                for like, one in zip(alike, ids, strict=True)
            ]
        )

    @cached_property
    def numbers(self) -> Int64[np.ndarray, " images"]:
        """Of each image a number, equal within a part."""
        return _numbers(self.names)


def told_by(members: Membership) -> str:
    """Return what tells the parts of the images in a model, in words."""
    named = members.present.column("part_id")
    if not named.null_count:
        return "part_id"
    if members.present.column("thumbnail").null_count:
        return "nothing"
    return "part_id and look-alikes" if named.null_count < len(named) else "look-alikes"


def choose_by_part(
    candidates: Int64[np.ndarray, " candidates"],
    parts: Int64[np.ndarray, " images"],
    at_most: int,
) -> Int64[np.ndarray, " chosen"]:
    """Return candidates, rising: as many parts as possible, and then as many images of each.

    Args:
        candidates: Numbers of images, rising.
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

        Passed over are images whose part cannot leave the model: it has all that the model knows,
        or the model knows nothing of single images and was trained on this one. Of Gaussians, they
        are also those of a part of more than 64 images, or with images that joined before.

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
            return self._each(images, None)
        every = np.flatnonzero(self.parts == self.parts[images[0]])
        bank = result.bank
        if bank is not None:
            own = OwnPart.of(every.tolist(), bank, together=True)
            is_whole = bank.origin is None or not bank.has_others(own.rows)
            return [] if is_whole else self._each(images, own)
        others = len(self.parts) - len(every)
        # The Gaussian of one image knows no spread.
        if every[0] < self.before or len(every) > _MOST_SHOTS or others < 2:  # noqa: PLR2004
            return []
        leaving = every.tolist()
        samples = self._scored(leaving, OwnPart.of(leaving, None, together=True))
        return [sample for sample in samples if sample.image in set(images)]

    def _each(self, images: Sequence[int], own: OwnPart | None) -> list[Sample]:
        pieces = [images[begin : begin + _AT_ONCE] for begin in range(0, len(images), _AT_ONCE)]
        return [sample for piece in pieces for sample in self._scored(piece, own)]

    def _scored(self, images: Sequence[int], own: OwnPart | None) -> list[Sample]:
        in_corpus = [image - self.before for image in images]
        arrays = [arrays for _, arrays in self.corpus.some(in_corpus)]
        interiors = self.corpus.interiors(in_corpus)
        return self.calibrator.samples(arrays, images, own, interiors)


def judged(
    calibrator: Calibrator, corpus: StoredCorpus, members: Membership, at_most: int, threads: int
) -> Membership:
    """Return the members of a model with the samples by part of those that have just joined.

    Earlier samples are kept as they were measured, thinned to make room, where their parts still
    have the images that were left out then.

    Args:
        calibrator: Of the model with all of them.
        corpus: Those that have just joined, the last of the members.
        members: All.
        at_most: Samples.
        threads: In which it is done.
    """
    parts = Parts.of(members)
    if parts is None:
        return members.judged([None] * members.count, [])
    before = members.count - corpus.images
    earlier = _unchanged(members, parts, before)
    unseen = calibrator.result.unseen
    candidates = np.arange(before, members.count) if unseen is None else unseen + before
    share = at_most * len(candidates) // max(1, members.count) if before else at_most
    chosen = choose_by_part(candidates, parts.numbers, max(share, at_most - len(earlier)))
    new = PartCalibrator(calibrator, corpus, parts.numbers, before).measure(chosen, threads)
    by_image = {one.image: one for one in earlier}
    numbers = np.array(list(by_image), np.int64)
    kept = choose_by_part(numbers, parts.numbers, max(0, at_most - len(new)))
    return members.judged(parts.names, [*(by_image[image] for image in kept.tolist()), *new])


def judged_without(members: Membership, before: int | None = None) -> Membership:
    """Return the members of a model that images have left, with the samples that still count.

    They were measured with all of them: what is left is farther from an image than it was then.

    Args:
        members: Of the model.
        before: How many of them may have samples; those that come after are no sample of good
            images, and a model that knows them is nearer to an image than it was.
    """
    present = members.count
    parts = Parts.of(members)
    if parts is None or members.withdrawn > _MAY_LEAVE * (present + members.withdrawn):
        return members.judged([None] * present, [])
    first = present if before is None else before
    return members.judged(parts.names, _unchanged(members, parts, first))


def _unchanged(members: Membership, parts: Parts, before: int) -> list[Sample]:
    """Return the samples of images whose part is, among the first `before`, what it was."""
    was = members.present.column("part").to_pylist()[:before]
    then, now = _sets(was), _sets(parts.names[:before])
    return [
        sample
        for sample in members.part_samples()
        if sample.image < before and then[was[sample.image]] == now[parts.names[sample.image]]
    ]


def _sets(names: Sequence[str | None]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for image, name in enumerate(names):
        found.setdefault(name, []).append(image)
    return found


def _numbers(names: Sequence[str]) -> Int64[np.ndarray, " images"]:
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)


def judged_of(members: Membership) -> Judged | None:
    """Return what verdicts go by; None where fewer than two parts were measured."""
    samples = members.part_samples()
    rows = members.present.take(pa.array([one.image for one in samples], pa.int64()))
    parts = _numbers(rows.column("part").to_pylist()).tolist()
    if len(set(parts)) < 2:  # noqa: PLR2004 - one part has no other to be compared with
        return None
    contents = rows.column("sha256").to_pylist()
    peaks = tuple(one.peak for one in samples if one.peak is not None)
    return Judged(
        scores=tuple(one.score for one in samples),
        parts=tuple(parts),
        images=tuple(int(one[:_DIGITS], 16) if one else 0 for one in contents),
        peaks=peaks if len(peaks) == len(samples) else None,
    )


# Of a digest in hexadecimal: 8 bytes.
_DIGITS = 16
