"""What reviews mean for a group's model: which images are to leave it, and which have not joined.

An image is found in a model by its place (root, file, row), by its content, or, where a review says
neither, by its group and `image_id`, if one image only has it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from patchlake.pipeline.groups.membership import Membership, with_roots

Decision = Mapping[str, object]
Place = tuple[object, object, object]


@dataclass(frozen=True)
class KnownImage:
    """One image that is, or was, in a model: its number there, or None where it has left."""

    number: int | None
    image_id: str
    sha256: str | None


@dataclass(frozen=True)
class ReviewedMembers:
    """The images that are, or were, in a group's model, as reviews find them."""

    group: str
    by_place: Mapping[Place, Sequence[KnownImage]]
    by_content: Mapping[str, Sequence[KnownImage]]
    by_id: Mapping[str, Sequence[KnownImage]]

    @classmethod
    def of(cls, group: str, members: Membership, roots: Sequence[str]) -> "ReviewedMembers":
        """Return the images of a group.

        Args:
            group: Its name.
            members: Its images.
            roots: Of the lake that images came from, by the number of the step they joined at.
        """
        by_place: dict[Place, list[KnownImage]] = defaultdict(list)
        by_content: dict[str, list[KnownImage]] = defaultdict(list)
        by_id: dict[str, list[KnownImage]] = defaultdict(list)
        number = 0
        for row in _rows(with_roots(members.table, roots)):
            is_in = row["left"] is None
            sha256 = None if row["sha256"] is None else str(row["sha256"])
            one = KnownImage(number if is_in else None, str(row["image_id"]), sha256)
            number += is_in
            by_place[row["root"], row["source_path"], row["source_row"]].append(one)
            by_id[one.image_id].append(one)
            if one.sha256 is not None:
                by_content[one.sha256].append(one)
        return cls(group, dict(by_place), dict(by_content), dict(by_id))

    def find(self, decision: Decision) -> list[KnownImage]:
        """Return the images that a decision is of; none, if it is of another group's.

        Several are the same picture, which joined more than once.
        """
        if decision["group"] not in (None, self.group):
            return []
        sha256, image_id = decision["sha256"], decision["image_id"]
        same = list(self.by_content.get(str(sha256), ())) if sha256 is not None else []
        place = (decision["root"], decision["source_path"], decision["source_row"])
        if None not in place:
            here = self.by_place.get(place, ())
            return same or [one for one in here if _is_same(one, sha256, image_id)]
        called = [one for one in self.by_id.get(str(image_id), ()) if _is_same(one, sha256, None)]
        return same or (called if len(called) == 1 else [])

    def is_ambiguous(self, decision: Decision) -> bool:
        """Return whether nothing but an `image_id` that several images have says which it is of."""
        if decision["group"] not in (None, self.group) or decision["source_path"] is not None:
            return False
        return len(self.by_id.get(str(decision["image_id"]), ())) > 1 and not self.find(decision)

    def numbers(self, decisions: Sequence[Decision]) -> Int64[np.ndarray, " leaving"]:
        """Return the numbers in the model of the images that decisions are of, rising."""
        found = {one.number for decision in decisions for one in self.find(decision)}
        return np.array(sorted(number for number in found if number is not None), np.int64)


def _is_same(one: KnownImage, sha256: object, image_id: object) -> bool:
    """Return whether a decision is of the picture that was there when the image joined."""
    if sha256 is not None and one.sha256 is not None:
        return bool(one.sha256 == sha256)
    return image_id in (None, one.image_id)


_NAMES = ("image_id", "root", "source_path", "source_row", "left", "sha256")
_BATCH = 16_384


def _rows(images: pa.Table) -> Iterator[dict[str, object]]:
    for batch in images.select(_NAMES).to_batches(max_chunksize=_BATCH):
        yield from batch.to_pylist()


@dataclass(frozen=True)
class ReviewCounts:
    """What a model has not learnt of reviews of one group's images."""

    # Decided to be good, though they were called anomalous, or it is not known whether they were.
    false_alarms_not_in_model: int = 0
    # Of those, images that have left the model: an update does not bring them back.
    withdrawn_before: int = 0
    # Decided to be defective.
    defective_in_model: int = 0
    unsure: int = 0
    disputed: int = 0


def is_false_alarm(decision: Decision) -> bool:
    """Return whether an image is good that was called anomalous, as far as is known."""
    return decision["verdict"] == "good" and decision["is_anomalous"] is not False


def count_reviews(
    decisions: Sequence[Decision], groups: Sequence[ReviewedMembers]
) -> dict[str, ReviewCounts]:
    """Return what models have not learnt, by group; of images whose group nobody says under "".

    Args:
        decisions: Rows of schema `DECIDED`.
        groups: Those of a model.
    """
    counts: dict[str, dict[str, int]] = {one.group: {} for one in groups}
    for decision in decisions:
        found = [(one.group, member) for one in groups for member in one.find(decision)]
        group = str(decision["group"] or (found[0][0] if found else ""))
        name = _counted(decision, [member for _, member in found])
        if name is not None:
            of_group = counts.setdefault(group, {})
            of_group[name] = of_group.get(name, 0) + 1
    return {group: ReviewCounts(**some) for group, some in sorted(counts.items())}


def _counted(decision: Decision, found: Sequence[KnownImage]) -> str | None:
    """Return as what an image is counted; None where there is nothing to learn."""
    verdict = str(decision["verdict"])
    if verdict in ("unsure", "disputed"):
        return verdict
    is_in = any(one.number is not None for one in found)
    if verdict == "defective":
        return "defective_in_model" if is_in else None
    if is_in or not is_false_alarm(decision):
        return None
    return "withdrawn_before" if found else "false_alarms_not_in_model"
