"""resync: what a second ingest finds changed, and old rows that new ones have replaced.

A row of IMAGES is as its file is now if version, group, split, label and the mask's version are.
Where such a row is there, any other row of the same file is over: new rows are written first, then
the files that hold old ones are written again without them, each in one put. A reader may meanwhile
see a picture twice, never not at all, and whoever was killed in between is made up for by the next
ingest. Only rows with a `source_uri` of SOURCE are looked at.

A row whose file is gone from SOURCE stays, unless its picture lies elsewhere in SOURCE: then it was
moved.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import FileDamaged
from pipeline.lake.apart import Call, each
from pipeline.lake.folder import Folder
from pipeline.lake.parquet import images_writer
from pipeline.lake.s3_file import fetch_columns
from pipeline.lake.sources import SourceImage

_STATE = ("source_version", "group", "split", "label")
_READ = ("source_uri", *_STATE, "sha256", "mask_version")


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

    def is_of(self, image: SourceImage) -> bool:
        """Return whether the row is as its file is now. A mask that is gone since is kept."""
        if self.state != (image.version, image.group, image.split, image.label):
            return False
        if image.mask is None:
            return True
        return self.has_mask and self.mask_version in (None, image.mask_version)


@dataclass(frozen=True)
class Standing:
    """The rows of IMAGES that came from files, by the file's URI."""

    by_uri: Mapping[str, Sequence[Row]]

    def fresh(self, images: Sequence[SourceImage]) -> list[SourceImage]:
        """Return the images of which no row is as they are now."""
        return [one for one in images if not any(row.is_of(one) for row in self._of(one))]

    def changes(self, fresh: Sequence[SourceImage]) -> Counter[str]:
        """Return why these are fresh, in words, and how many are for each reason."""
        return Counter(_reason(image, self._of(image)) for image in fresh)

    def over(self, images: Sequence[SourceImage], root: str) -> "Over":
        """Return the rows that others have replaced, and those whose file is gone.

        Args:
            images: All that SOURCE has.
            root: Of SOURCE, of which all files are known; empty where they are not (a manifest).
        """
        over = Over()
        held: set[str | None] = set()
        wanted = {image.uri: image for image in images}
        for uri, image in wanted.items():
            current = [row for row in self.by_uri.get(uri, ()) if row.is_of(image)]
            if current:
                held.add(current[0].sha256)
                over.replaced.extend(r for r in self.by_uri[uri] if r is not current[0])
        below = root.rstrip("/") + "/"
        for uri, rows in self.by_uri.items():
            if root and uri not in wanted and uri.startswith(below):
                moved = rows[0].sha256 is not None and rows[0].sha256 in held
                (over.moved if moved else over.gone).extend(rows)
        return over

    def _of(self, image: SourceImage) -> Sequence[Row]:
        return self.by_uri.get(image.uri, ())


@dataclass(frozen=True)
class Over:
    """Rows to be removed, and rows that stay without their file."""

    replaced: list[Row] = field(default_factory=list)
    moved: list[Row] = field(default_factory=list)
    gone: list[Row] = field(default_factory=list)

    def remove(self, images: Folder) -> None:
        """Write the files that hold replaced or moved rows again, without them."""
        by_file: dict[str, set[int]] = {}
        for row in (*self.replaced, *self.moved):
            by_file.setdefault(row.file, set()).add(row.number)
        for file, numbers in sorted(by_file.items()):
            _without(images, file, numbers)


def read_standing(images: Folder, files: Sequence[str]) -> Standing:
    """Return what was ingested before. Reads narrow columns of all files.

    Raises:
        FileDamaged: if a file cannot be read.
    """
    by_uri: dict[str, list[Row]] = {}
    calls = [Call(_Read(images), name, images.path(name)) for name in files]
    for found in each(images, calls):
        if isinstance(found, FileDamaged):
            raise found
        for row in found:
            by_uri.setdefault(row.uri, []).append(row)
    return Standing(by_uri)


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
        )


def _reason(image: SourceImage, rows: Sequence[Row]) -> str:
    if not rows:
        return "new"
    version, *known = rows[0].state
    if version != image.version:
        return "taken again"
    if known != [image.group, image.split, image.label]:
        return "of another group, split or label"
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
