"""resync: what a second ingest finds changed, and old rows that new ones have replaced.

A row of IMAGES is as its file is now if version, group, split, label and the mask's version are,
and image_id, captured_at and part_id where SOURCE says them. Where such a row is there, any other
row of the same file is over: new rows are written first, then the files that hold old ones are
written again without them, each in one put. A reader may meanwhile see a picture twice, never not
at all, and whoever was killed in between is made up for by the next ingest. Only rows with a
`source_uri` of SOURCE are looked at, by whatever links it was named (`sources.sources.Places`).

A row whose file is gone from SOURCE stays, unless its picture has come to lie elsewhere in SOURCE:
then it was moved. A copy that has lain elsewhere before is none that was moved; for what a killed
ingest had brought there is a note in IMAGES (`Moves`).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from patchlake.pipeline.errors import FileDamaged
from patchlake.pipeline.reading.apart import Call, each
from patchlake.pipeline.reading.columns import fetch_columns
from patchlake.pipeline.score_table.parquet import images_writer
from patchlake.pipeline.sources.hive import completed
from patchlake.pipeline.sources.sources import Places, SourceImage
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import or_none, read_json
from patchlake.pipeline.tables import IMAGES

_STATE = ("source_version", "group", "split", "label")
_READ = ("source_uri", *_STATE, "sha256", "mask_version", "image_id", "captured_at", "part_id")


@dataclass(frozen=True)
class Row:
    """A row that was ingested: where it is, and of what."""

    file: str
    number: int
    uri: str
    state: tuple[str | None, ...]
    sha256: str | None
    # None: no mask's file was there, or it came before masks had versions (`has_mask`).
    mask_version: str | None
    has_mask: bool
    image_id: str | None = None
    captured_at: datetime | None = None
    part_id: str | None = None

    def is_of(self, image: SourceImage, masks: AbstractSet[str | None]) -> bool:
        """Return whether the row is as its file is now.

        What SOURCE does not say any more is kept: a mask, a time, an id, a piece.

        Args:
            image: The file.
            masks: Versions of all masks that other images have now: a mask with one of these is not
                gone, but belongs to another image.
        """
        if self.state != (image.version, image.group, image.split, image.label):
            return False
        if not self.lies_in(image.hive):
            return False
        if self.differs(image):
            return False
        if image.mask is None:
            return not self.has_mask or self.mask_version is None or self.mask_version not in masks
        return self.has_mask and self.mask_version in (None, image.mask_version)

    def lies_in(self, hive: str) -> bool:
        """Return whether its file is in these folders; in any, where they are not said."""
        return not hive or self.hive == hive

    @property
    def own_id(self) -> str | None:
        """Its id, where that says more than where its file was."""
        is_place = self.image_id and f"/{self.uri}".endswith(f"/{self.image_id}")
        return None if is_place else self.image_id

    def says(self, image: SourceImage) -> tuple[bool, int]:
        """Return how much it says of an image: of two rows of it, one may be of a killed ingest."""
        own = (*self.state[2:], self.captured_at, self.part_id, self.has_mask or None)
        return self.state[0] == image.version, sum(one is not None for one in own)

    def complete(self, image: SourceImage, masks: AbstractSet[str | None]) -> SourceImage:
        """Return the image with what this row knows of it and SOURCE does not say.

        Of a picture that was taken again it is only where it belongs that is known.

        Args:
            image: The image.
            masks: As in `is_of`.
        """
        unsaid = image.unsaid
        version, group, split, label = self.state
        placed = replace(
            image,
            image_id=image.image_id if image.has_own_id else self.own_id or image.image_id,
            group=(group if "group" in unsaid else None) or image.group,
            split=split if "split" in unsaid else image.split,
        )
        if version != image.version:
            return completed(placed, self.hive)
        has_mask = self.has_mask and image.mask is None and self.mask_version not in masks
        whole = replace(
            placed,
            label=label if "label" in unsaid else image.label,
            captured_at=image.captured_at or self.captured_at,
            part_id=image.part_id or self.part_id,
            mask_version=self.mask_version if has_mask else image.mask_version,
            masked_file=self.file if has_mask else None,
            masked_row=self.number if has_mask else None,
        )
        return completed(whole, self.hive)

    @property
    def hive(self) -> str:
        """The folders of hive keys that its file is in, but that of its group; or ""."""
        return self.file.rpartition("/g=")[0]

    def differs(self, image: SourceImage) -> bool:
        """Return whether SOURCE says another id, time or piece."""
        return (
            (image.has_own_id and image.image_id != self.image_id)
            or image.captured_at not in (None, self.captured_at)
            or image.part_id not in (None, self.part_id)
        )


@dataclass(frozen=True)
class IngestedRows:
    """The rows of IMAGES that came from files, by the file's place."""

    by_place: Mapping[str, Sequence[Row]]
    places: Places

    def complete(self, images: Sequence[SourceImage]) -> list[SourceImage]:
        """Return the images with what is known of them where SOURCE says nothing."""
        masks = _masks(images)
        found = []
        for image in images:
            rows = self._of(image)
            if rows:
                best = max(rows, key=partial(Row.says, image=image))
                found.append(best.complete(image, masks))
            else:
                found.append(completed(image, ""))
        return found

    def fresh(self, images: Sequence[SourceImage]) -> list[SourceImage]:
        """Return the images of which no row is as they are now."""
        masks = _masks(images)
        return [one for one in images if not any(row.is_of(one, masks) for row in self._of(one))]

    def changes(self, fresh: Sequence[SourceImage]) -> Counter[str]:
        """Return why these are fresh, in words, and how many are for each reason."""
        return Counter(_reason(image, self._of(image)) for image in fresh)

    def gone(self, images: Sequence[SourceImage], root: str) -> list[Sequence[Row]]:
        """Return the rows of each file of SOURCE that is gone; none where `root` is empty."""
        if not root:
            return []
        wanted = {self.places.of(image.uri) for image in images}
        below = root.rstrip("/") + "/"
        resolved = self.places.of(below)
        return [
            rows
            for place, rows in self.by_place.items()
            if place not in wanted and (place.startswith(resolved) or rows[0].uri.startswith(below))
        ]

    def over(
        self, images: Sequence[SourceImage], root: str, came: AbstractSet[str]
    ) -> "SupersededRows":
        """Return the rows that others have replaced, and those whose file is gone.

        Args:
            images: All that SOURCE has.
            root: Of SOURCE, of which all files are known; empty where they are not (a manifest).
            came: URIs of the images that this ingest, or one that was killed, has brought.
        """
        over = SupersededRows()
        masks = _masks(images)
        held: dict[str | None, SourceImage] = {}
        for image in {self.places.of(image.uri): image for image in images}.values():
            rows = self._of(image)
            current = [row for row in rows if row.is_of(image, masks)]
            if current:
                over.replaced.extend(row for row in rows if row is not current[0])
                if image.uri in came:
                    held[current[0].sha256] = image
        for rows in self.gone(images, root):
            moved = None if rows[0].sha256 is None else held.get(rows[0].sha256)
            if moved is None:
                over.gone.extend(rows)
                continue
            over.moved.extend(rows)
            learned = rows[0].complete(replace(moved, version=rows[0].state[0] or ""), masks)
            learned = replace(learned, version=moved.version)
            if learned != replace(moved, masked_file=None, masked_row=None):
                over.learned.append(learned)
        return over

    def _of(self, image: SourceImage) -> Sequence[Row]:
        return self.by_place.get(self.places.of(image.uri), ())


def _masks(images: Sequence[SourceImage]) -> set[str | None]:
    return {image.mask_version for image in images if image.mask is not None}


class _Came(BaseModel):
    uris: list[str]


@dataclass(frozen=True)
class Moves:
    """A note in IMAGES of what an ingest of SOURCE brings, until it has removed what was moved."""

    images: Folder
    root: str

    @property
    def _name(self) -> str:
        return f"_ingest-{hashlib.sha256(self.root.encode()).hexdigest()[:12]}.json"

    def begin(
        self, before: IngestedRows, images: Sequence[SourceImage], fresh: Sequence[SourceImage]
    ) -> set[str]:
        """Return the URIs of what is brought, by killed ingests as well; note them if need be."""
        note = or_none(lambda: read_json(self.images, self._name, _Came, "it is made again"))
        came = {image.uri for image in fresh} | set(note.uris if note else ())
        if fresh and before.gone(images, self.root):
            self.images.write(self._name, _Came(uris=sorted(came)).model_dump_json().encode())
        return came

    def done(self) -> None:
        """Remove the note: what was moved is removed."""
        if self.images.exists(self._name):
            self.images.remove(self._name)


@dataclass(frozen=True)
class SupersededRows:
    """Rows to be removed, and rows that stay without their file."""

    replaced: list[Row] = field(default_factory=list)
    moved: list[Row] = field(default_factory=list)
    gone: list[Row] = field(default_factory=list)
    # Images that were moved, with what only the rows that are to be removed know of them.
    learned: list[SourceImage] = field(default_factory=list)

    def remove(self, images: Folder) -> None:
        """Write the files that hold replaced or moved rows again, without them."""
        by_file: dict[str, set[int]] = {}
        for row in (*self.replaced, *self.moved):
            by_file.setdefault(row.file, set()).add(row.number)
        for file, numbers in sorted(by_file.items()):
            _without(images, file, numbers)


def read_ingested(images: Folder, files: Sequence[str]) -> IngestedRows:
    """Return what was ingested before. Reads narrow columns of all files.

    Raises:
        FileDamaged: if a file cannot be read.
    """
    places = Places()
    by_place: dict[str, list[Row]] = {}
    calls = [Call(_Read(images), name, images.path(name)) for name in files]
    for found in each(images, calls):
        if isinstance(found, FileDamaged):
            raise found
        for row in found:
            by_place.setdefault(places.of(row.uri), []).append(row)
    return IngestedRows(by_place, places)


@dataclass(frozen=True)
class _Read:
    images: Folder

    def __call__(self, name: str) -> list[Row]:
        with self.images.open(name) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            held = set(file.schema_arrow.names)
            # Of files that did not come from an ingest nothing is known, and nothing is touched.
            if not {"source_uri", *_STATE} <= held:
                return []
            names = [column for column in _READ if column in held]
            # Somebody else's time may be one that Python cannot hold, and their piece a number.
            for column in {"captured_at", "part_id"} & held:
                found = file.schema_arrow.field(file.schema_arrow.names.index(column)).type
                if found != IMAGES.field(column).type:
                    names.remove(column)
            if "mask_version" not in held:
                names.append("mask")
            fetch_columns(handle, file, range(file.num_row_groups), names)
            return list(_rows(name, file.read(columns=names)))


def _rows(file: str, table: pa.Table) -> Iterator[Row]:
    had = [True] * len(table)
    if "mask" in table.column_names:
        had = table.column("mask").is_valid().to_pylist()
        table = table.drop_columns(["mask"])
    for number, (row, masked) in enumerate(zip(table.to_pylist(), had, strict=True)):
        if row["source_uri"] is None:
            continue
        version = row.get("mask_version")
        yield Row(
            file=file,
            number=number,
            uri=row["source_uri"],
            state=tuple(row[name] for name in _STATE),
            sha256=row.get("sha256"),
            mask_version=version,
            has_mask=masked if "mask_version" not in row else version is not None,
            image_id=row.get("image_id"),
            captured_at=row.get("captured_at"),
            part_id=row.get("part_id"),
        )


def _reason(image: SourceImage, rows: Sequence[Row]) -> str:
    if not rows:
        return "new"
    version, *known = rows[0].state
    if version != image.version:
        return "taken again"
    if known != [image.group, image.split, image.label]:
        return "of another group, split or label"
    if not rows[0].lies_in(image.hive):
        return "in other partitions"
    if rows[0].differs(image):
        return "of another image_id, captured_at or part_id"
    return "with another mask"


def _without(images: Folder, name: str, numbers: set[int]) -> None:
    """Write a file again without some rows, a row group at a time; remove it if none is left."""
    with images.open(name) as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        if len(numbers) < file.metadata.num_rows:
            _write_others(images, name, file, numbers)
            return
    images.remove(name)


def _write_others(images: Folder, name: str, file: pq.ParquetFile, numbers: set[int]) -> None:
    first = 0
    with (
        images.writing(name) as target,
        images_writer(target, file.schema_arrow) as writer,
    ):
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            kept = [first + row not in numbers for row in range(len(table))]
            first += len(table)
            if any(kept):
                writer.write_table(table.filter(pa.array(kept)))
