"""The images that are, or were, in a group's model: who joined when, who left, who is which number.

An image is known by its `image_id` within its group. One that was withdrawn stays known, so that it
is not added again by the next update over the same lake.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from pipeline.methods.contract import closed_up
from pipeline.scores.calibration import Sample
from pipeline.stages.corpus import StoredCorpus
from pipeline.tables import PROVENANCE, TRAINING_IMAGES

# Images that are Python objects at a time.
_BATCH = 16_384
_MEASURED = ("score", "peak", "patch_mean", "patch_std")


@dataclass(frozen=True)
class Place:
    """Where an image was when it joined, and at which step that was."""

    path: str
    row: int
    version: str
    joined: int


@dataclass(frozen=True)
class Membership:
    """A table of schema `TRAINING_IMAGES`. Those present are numbered in its order."""

    table: pa.Table

    @classmethod
    def of(cls, corpus: StoredCorpus, step: int) -> "Membership":
        """Return the images of a corpus, which join at a step."""
        tables = []
        for fragment, described in corpus.described():
            count = len(described.image_ids)
            columns = {
                "image_id": described.image_ids,
                "source_path": [fragment.path] * count,
                "source_row": described.source_rows,
                "source_version": [fragment.version] * count,
                "joined": np.full(count, step, np.int32),
            }
            tables.append(_table(columns, count))
        return cls(pa.concat_tables(tables).combine_chunks())

    @property
    def count(self) -> int:
        """Images in the model."""
        return len(self.present)

    @cached_property
    def present(self) -> pa.Table:
        """The images in the model, in the order of their numbers."""
        return self.table.filter(pc.is_null(self.table.column("left")))

    @cached_property
    def known(self) -> frozenset[str]:
        """The image_ids that are, or were, in the model."""
        return frozenset(self.table.column("image_id").to_pylist())

    def numbers_of(self, image_ids: Sequence[str]) -> Int64[np.ndarray, " numbers"]:
        """Return the numbers of those in the model that have one of these ids."""
        wanted = pa.array(list(image_ids), pa.string())
        found = pc.is_in(self.present.column("image_id"), value_set=wanted)
        return np.flatnonzero(found.to_numpy())

    def places(self, numbers: Int64[np.ndarray, " numbers"]) -> list[Place]:
        """Return where images of these numbers were."""
        rows = self.present.take(pa.array(numbers))
        names = ("source_path", "source_row", "source_version", "joined")
        columns = (rows.column(name).to_pylist() for name in names)
        return [Place(*values) for values in zip(*columns, strict=True)]

    def joined_by(self, others: "Membership") -> "Membership":
        """Return the images of both, the others' last."""
        return Membership(pa.concat_tables([self.table, others.table]))

    def left_by(self, numbers: Int64[np.ndarray, " withdrawn"], step: int) -> "Membership":
        """Return the images with some of those present withdrawn at a step."""
        left = self.table.column("left").to_pylist()
        rows = np.flatnonzero(pc.is_null(self.table.column("left")).to_numpy())
        for row in rows[numbers]:
            left[row] = step
        columns = {name: self.table.column(name) for name in TRAINING_IMAGES.names}
        table = _table(columns | {"left": left}, len(self.table))
        return Membership(table)

    def measured(self, samples: Sequence[Sample]) -> "Membership":
        """Return the images with these samples, and no others."""
        rows = np.flatnonzero(pc.is_null(self.table.column("left")).to_numpy())
        columns = {name: self.table.column(name) for name in TRAINING_IMAGES.names}
        for name in _MEASURED:
            values: list[float | None] = [None] * len(self.table)
            for sample in samples:
                values[rows[sample.image]] = getattr(sample, name)
            columns[name] = values
        return Membership(_table(columns, len(self.table)))

    def samples(self) -> list[Sample]:
        """Return how images in the model scored, of those that were measured."""
        rows = self.present.select(_MEASURED).to_pylist()
        return [
            Sample(number, **row) for number, row in enumerate(rows) if row["score"] is not None
        ]

    def origin(self, provenance: pa.Table) -> Int64[np.ndarray, "bank 3"]:
        """Return the number of its image, y and x of each row of a bank: undoes `provenance`."""
        names = ("image_id", "source_path", "source_row")
        of_rows = list(zip(*(provenance.column(name).to_pylist() for name in names), strict=True))
        numbers, number = dict.fromkeys(of_rows, -1), 0
        for batch in self.present.to_batches(max_chunksize=_BATCH):
            for place in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                if place in numbers:
                    numbers[place] = number
                number += 1
        origin = np.empty((len(provenance), 3), np.int64)
        origin[:, 0] = [numbers[place] for place in of_rows]
        origin[:, 1] = provenance.column("y").to_numpy()
        origin[:, 2] = provenance.column("x").to_numpy()
        return origin

    def provenance(self, origin: Int64[np.ndarray, "bank 3"]) -> pa.Table:
        """Return where each row of a bank is from, schema `PROVENANCE`."""
        images = self.present.take(pa.array(origin[:, 0]))
        columns = {
            "bank_row": np.arange(len(origin)),
            "image_id": images.column("image_id"),
            "source_path": images.column("source_path"),
            "source_row": images.column("source_row"),
            "y": origin[:, 1],
            "x": origin[:, 2],
        }
        arrays = [_array(columns[field.name], field) for field in PROVENANCE]
        return pa.Table.from_arrays(arrays, schema=PROVENANCE)


def samples_left(
    samples: Sequence[Sample], withdrawn: Int64[np.ndarray, " withdrawn"]
) -> list[Sample]:
    """Return the samples of the images that stay, under their new numbers."""
    gone = set(withdrawn.tolist())
    kept = [one for one in samples if one.image not in gone]
    numbers = closed_up(np.array([one.image for one in kept], np.int64), withdrawn)
    return [
        Sample(int(number), one.score, one.peak, one.patch_mean, one.patch_std)
        for number, one in zip(numbers, kept, strict=True)
    ]


def _table(columns: dict[str, object], rows: int) -> pa.Table:
    arrays = [_array(columns.get(field.name, [None] * rows), field) for field in TRAINING_IMAGES]
    return pa.Table.from_arrays(arrays, schema=TRAINING_IMAGES)


def _array(values: object, field: pa.Field) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks().cast(field.type)
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(field.type)
    return pa.array(values, field.type)
