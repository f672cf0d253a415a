"""Suspects: training images that look anomalous themselves, and fits that leave them out.

Each image is scored without all that its part gave to the model, as for verdicts. It is suspect
where `maths.outliers.deviations` is above 3.5. A robust fit leaves suspects out, looks again and
leaves out what it sees then: defects of one kind stand by one another until the first of them are
gone.

SoftPatch (Jiang et al., "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS 2022)
weighs and drops single patches of PatchCore. Here whole images are dropped: that serves every
method that knows its images, and a person can look at them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.groups.partials import EMBEDDINGS, load_images, pieces
from patchlake.pipeline.maths.outliers import deviations
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.per_image import write_per_image
from patchlake.pipeline.scores.calibration import Sample
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SUSPECTS

V = TypeVar("V")

# Of Iglewicz and Hoaglin.
_SUSPECT = 3.5
# Of fewer images nobody can say which are unlike the others.
_FEWEST = 10
# Images of a group that are listed at least, so that there is something to look at.
_LISTED = 20
# How often a robust fit looks. Each time is a fit, and a score of all that is left.
_ROUNDS = 2


@dataclass(frozen=True)
class Suspicion:
    """How suspect one image is."""

    score: float
    deviation: float

    @property
    def is_suspect(self) -> bool:
        """Whether it is more than can be expected of a good image."""
        return self.deviation > _SUSPECT


def suspicions(samples: Sequence[Sample]) -> dict[int, Suspicion]:
    """Return how suspect each image is, by its number; of fewer than 10 nothing is said."""
    if len(samples) < _FEWEST:
        return {}
    scores = np.array([one.score for one in samples], np.float32)
    return {
        one.image: Suspicion(one.score, float(deviation))
        for one, deviation in zip(samples, deviations(scores), strict=True)
    }


def without_their_samples(members: Membership) -> Membership:
    """Return the members of a model without the samples by part of those that are suspect."""
    samples = members.part_samples()
    found = suspicions(samples)
    kept = [one for one in samples if one.image not in found or not found[one.image].is_suspect]
    return members.judged(members.present.column("part").to_pylist(), kept)


@dataclass(frozen=True)
class CleanCorpus:
    """A corpus, and those of its images that a robust fit leaves out, by number."""

    corpus: StoredCorpus
    left_out: Mapping[int, Suspicion] = field(default_factory=dict)

    @property
    def numbers(self) -> Int64[np.ndarray, " left_out"]:
        """The numbers of the images that are left out, rising."""
        return np.array(sorted(self.left_out), np.int64)


def without_suspects(
    corpus: StoredCorpus, measure: Callable[[StoredCorpus], Sequence[Sample]]
) -> CleanCorpus:
    """Return the corpus without its suspects. Costs up to two fits, and copies of the embeddings.

    Args:
        corpus: All images.
        measure: Fits a corpus, and returns the samples by part of all its images.
    """
    kept, left_out = corpus, dict[int, Suspicion]()
    numbers = np.arange(corpus.images)
    for round_ in range(_ROUNDS):
        found = {at: one for at, one in suspicions(measure(kept)).items() if one.is_suspect}
        if not found:
            break
        left_out |= {int(numbers[at]): one for at, one in found.items()}
        numbers = np.delete(numbers, list(found))
        kept = _without(kept, frozenset(found), f"kept-{round_}/")
    return CleanCorpus(kept, left_out)


def _without(corpus: StoredCorpus, images: frozenset[int], folder: str) -> StoredCorpus:
    """Return a corpus of the other images, whose embeddings are copied."""
    kept = replace(corpus, partials=f"{corpus.partials}{folder}")
    calls, first = [], 0
    for fragment, embedded in corpus.embedded_images():
        count = len(embedded.image_ids)
        left = [at for at in range(count) if first + at not in images]
        calls.append(partial(_copy, corpus.model, fragment.key, corpus.partials, folder, left))
        first += count
    for _ in corpus.workers.each(calls):
        pass
    return kept


def _copy(model: Folder, key: str, partials: str, folder: str, left: Sequence[int]) -> None:
    """Copy some of a fragment's embeddings; the others are listed as suspects."""
    images = load_images(model, partials, key)
    chosen = set(left)
    ok = iter(range(len(images.image_ids)))
    kept = replace(
        images,
        statuses=[
            "suspect" if status == "ok" and next(ok) not in chosen else status
            for status in images.statuses
        ],
        image_ids=_some(images.image_ids, left),
        source_rows=_some(images.source_rows, left),
        sha256s=_some(images.sha256s, left),
        part_ids=_some(images.part_ids, left),
        thumbnails=_some(images.thumbnails, left),
        interiors=_some(images.interiors, left),
        brightness=_some(images.brightness, left),
        sharpness=_some(images.sharpness, left),
        embeddings=_some(images.embeddings, left),
    )
    model.write(f"{partials}{folder}{key}.json", json.dumps(asdict(kept)).encode())

    def arrays() -> Iterator[Arrays]:
        for start, piece in pieces(model, f"{partials}{key}{EMBEDDINGS}"):
            end = start + len(next(iter(piece.values())))
            rows = [at - start for at in left if start <= at < end]
            yield {name: array[rows] for name, array in piece.items()}

    # A fragment without images has no arrays to be copied.
    source = arrays() if images.image_ids else iter(())
    write_per_image(model, f"{partials}{folder}{key}{EMBEDDINGS}", source)


def _some(values: list[V], left: Sequence[int]) -> list[V]:
    # Partial results of before some list was kept have an empty one.
    return [values[at] for at in left] if values else []


def listed(
    group: str, members: Membership, left_out: Mapping[int, Suspicion] | None = None
) -> pa.Table:
    """Return the suspects of a group, and its 20 most suspicious images in any case.

    The schema is `SUSPECTS`; there are no pictures yet.

    Args:
        group: Its name.
        members: Of the model, with their samples by part.
        left_out: By number in the whole table of members: what a robust fit has left out, and why.
    """
    found = suspicions(members.part_samples())
    ranked = sorted(found, key=lambda image: (-found[image].deviation, image))
    chosen = [n for rank, n in enumerate(ranked) if rank < _LISTED or found[n].is_suspect]
    out = left_out or {}
    rows = _rows(group, members.present, chosen, found, left_out=False)
    rows += _rows(group, members.table, list(out), out, left_out=True)
    return pa.Table.from_pylist(rows, schema=SUSPECTS)


def as_listed(table: pa.Table) -> pa.Table:
    """Return a stored list of suspects with all columns of `SUSPECTS`.

    Those that were not kept when it was written are null.

    Raises:
        ValueError: if a column is missing that always was there, or there is another one.
    """
    names = table.column_names
    lacking = [one for one in SUSPECTS if one.name not in names]
    if set(names) - set(SUSPECTS.names) or any(not one.nullable for one in lacking):
        raise ValueError(f"its columns are {', '.join(names)}")
    for one in lacking:
        table = table.append_column(one, pa.nulls(len(table), one.type))
    return table.select(SUSPECTS.names).cast(SUSPECTS)


def _rows(
    group: str,
    images: pa.Table,
    numbers: Sequence[int],
    found: Mapping[int, Suspicion],
    *,
    left_out: bool,
) -> list[dict[str, object]]:
    names = ("image_id", "source_path", "source_row", "part_id", "sha256")
    places = images.select(names).take(pa.array(numbers, pa.int64())).to_pylist()
    return [
        {
            "group": group,
            **place,
            "score": found[number].score,
            "deviation": found[number].deviation,
            "is_suspect": found[number].is_suspect,
            "left_out": left_out,
        }
        for number, place in zip(numbers, places, strict=True)
    ]
