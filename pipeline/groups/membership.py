"""The images that are, or were, in a group's model: who joined when, who left, who is which number.

An image is known by its place (lake, file, version, row) or by its content: an `image_id` may come
again every day. One that was withdrawn stays known, so that it is not added again by the next
update over the same lake.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.methods.shared.bank import closed_up
from patchlake.pipeline.scores.calibration import Sample
from patchlake.pipeline.tables import PROVENANCE, TRAINING_IMAGES

# Images that are Python objects at a time.
_BATCH = 16_384
_MEASURED = ("score", "peak", "patch_mean", "patch_std")


@dataclass(frozen=True)
class ImagePlace:
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
        for fragment, images in corpus.embedded_images():
            count = len(images.image_ids)
            none = [None] * count
            columns = {
                "image_id": images.image_ids,
                "source_path": [fragment.path] * count,
                "source_row": images.source_rows,
                "source_version": [fragment.version] * count,
                "joined": np.full(count, step, np.int32),
                "sha256": images.sha256s,
                "part_id": images.part_ids or none,
                "thumbnail": list(map(b64decode, images.thumbnails)) if images.thumbnails else none,
                "brightness": images.brightness or none,
                "sharpness": images.sharpness or none,
                "embedding": images.embeddings or none,
            }
            tables.append(_table(columns, count))
        return cls(pa.concat_tables(tables).combine_chunks())

    @classmethod
    def stored(cls, table: pa.Table) -> "Membership":
        """Return the images of a file, which may have been written before some column was kept."""
        columns = {name: table.column(name) for name in table.column_names}
        return cls(_table(columns, len(table)))

    @property
    def count(self) -> int:
        """Images in the model."""
        return len(self.present)

    @property
    def withdrawn(self) -> int:
        """Images that were in the model, which those that a robust fit left out never were."""
        left, joined = self.table.column("left"), self.table.column("joined")
        return int(pc.sum(pc.greater(left, joined)).as_py() or 0)

    @cached_property
    def present(self) -> pa.Table:
        """The images in the model, in the order of their numbers."""
        return self.table.filter(pc.is_null(self.table.column("left")))

    @cached_property
    def image_ids(self) -> frozenset[str]:
        """The image_ids that are, or were, in the model."""
        return frozenset(self.table.column("image_id").to_pylist())

    def known(self, roots: Sequence[str], lake: str) -> "Known":
        """Return what tells the images that are, or were, in the model.

        Args:
            roots: Of the lake that images came from, by the number of the step they joined at.
            lake: Root of the lake whose images are to be told; places in others say nothing.
        """
        return Known.of(with_roots(self.table, roots), lake)

    def numbers_of(self, image_ids: Sequence[str]) -> Int64[np.ndarray, " numbers"]:
        """Return the numbers of those in the model that have one of these ids."""
        wanted = pa.array(list(image_ids), pa.string())
        found = pc.is_in(self.present.column("image_id"), value_set=wanted)
        return np.flatnonzero(found.to_numpy())

    def places(self, numbers: Int64[np.ndarray, " numbers"]) -> list[ImagePlace]:
        """Return where images of these numbers were."""
        rows = self.present.take(pa.array(numbers))
        names = ("source_path", "source_row", "source_version", "joined")
        columns = (rows.column(name).to_pylist() for name in names)
        return [ImagePlace(*values) for values in zip(*columns, strict=True)]

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

    def judged(self, parts: Sequence[str | None], samples: Sequence[Sample]) -> "Membership":
        """Return the images with their parts and these samples by part, and no others.

        Args:
            parts: Of each image in the model, by number; None: not known.
            samples: Each measured without what its whole part gave to the model.
        """
        rows = np.flatnonzero(pc.is_null(self.table.column("left")).to_numpy())
        columns = {name: self.table.column(name) for name in TRAINING_IMAGES.names}
        names: list[str | None] = [None] * len(self.table)
        scores: list[float | None] = [None] * len(self.table)
        peaks: list[float | None] = [None] * len(self.table)
        for row, part in zip(rows, parts, strict=True):
            names[row] = part
        for sample in samples:
            scores[rows[sample.image]] = sample.score
            peaks[rows[sample.image]] = sample.peak
        columns |= {"part": names, "part_score": scores, "part_peak": peaks}
        return Membership(_table(columns, len(self.table)))

    def part_samples(self) -> list[Sample]:
        """Return the samples by part of the images in the model, by number."""
        columns = (self.present.column(name).to_pylist() for name in ("part_score", "part_peak"))
        return [
            Sample(number, score, peak)
            for number, (score, peak) in enumerate(zip(*columns, strict=True))
            if score is not None
        ]

    def samples(self) -> list[Sample]:
        """Return how images in the model scored, of those that were measured."""
        rows = self.present.select(_MEASURED).to_pylist()
        return [
            Sample(number, **row) for number, row in enumerate(rows) if row["score"] is not None
        ]

    def origin(self, provenance: pa.Table) -> Int64[np.ndarray, "bank 3"]:
        """Return the number of its image, y and x of each row of a bank: undoes `provenance`."""
        names = ["image_id", "source_path", "source_row"]
        versions = provenance.column_names[-1]
        if versions == "source_version" and not provenance.column(versions).null_count:
            # A file may have been replaced by one whose images have the same ids.
            names.append("source_version")
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
            "source_version": images.column("source_version"),
        }
        arrays = [_array(columns[field.name], field) for field in PROVENANCE]
        return pa.Table.from_arrays(arrays, schema=PROVENANCE)


@dataclass(frozen=True)
class Known:
    """What tells whether a row of one lake is an image of a model: see the module."""

    # (path, version) -> rows.
    places: Mapping[tuple[str, str], frozenset[int]]
    contents: frozenset[str]
    image_ids: frozenset[str]
    # Of images that joined before their content was noted: by these alone they are known.
    unnoted: frozenset[str]

    @classmethod
    def of(cls, images: pa.Table, lake: str) -> "Known":
        """Return what tells these images; the table has the columns of `with_roots`."""
        here = images.filter(pc.equal(images.column("root"), lake))
        found = here.group_by(["source_path", "source_version"]).aggregate([("source_row", "list")])
        places = (found.column(n).to_pylist() for n in found.column_names)
        named = dict(zip(found.column_names, places, strict=True))
        keys = zip(named["source_path"], named["source_version"], strict=True)
        rows = map(frozenset, named["source_row_list"])
        sha256 = images.column("sha256")
        unnoted = images.filter(pc.is_null(sha256)).column("image_id")
        return cls(
            places=dict(zip(keys, rows, strict=True)),
            contents=frozenset(sha256.drop_null().to_pylist()),
            image_ids=frozenset(images.column("image_id").to_pylist()),
            unnoted=frozenset(unnoted.to_pylist()),
        )

    def at(self, path: str, version: str) -> frozenset[int]:
        """Return the rows of a file, as it is in this version, that are images of the model."""
        return self.places.get((path, version), frozenset())


def with_roots(images: pa.Table, roots: Sequence[str]) -> pa.Table:
    """Return images of schema `TRAINING_IMAGES` with the root of the lake that each joined from."""
    named = pa.array([*roots, ""], pa.string())
    # Models of before the lineage was kept name no lake.
    steps = pc.min_element_wise(images.column("joined"), pa.scalar(len(roots), pa.int32()))
    return images.append_column("root", pc.take(named, steps))


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
