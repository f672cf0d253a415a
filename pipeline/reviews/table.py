"""The reviews table: a folder of Parquet files, each written once, by as many people as there are.

    REVIEWS/reviews-<UTC time>-<digest>.parquet   schema `REVIEWS`

Nothing is ever replaced: whoever thinks again adds another row. So several people review at once,
and none undoes what another one has said.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import reading
from patchlake.pipeline.storage.roles import Use, require
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import REVIEWS

VERDICTS = ("defective", "good", "unsure")
# Of one file, as it lies there and decompressed: a million rows have some 200 MB.
MOST_BYTES = 512 * 1024**2
# Characters of a cell of text, and boxes of an image: more of these are none that a person drew.
MOST_CHARACTERS = 4096
MOST_REGIONS = 100

_PATTERN = "reviews-*.parquet"
_TEXTS = tuple(field.name for field in REVIEWS if pa.types.is_string(field.type))
_AGAIN = "restore it from a copy, or remove it; its reviews are lost then"
# Small reads behind a latency of tens of ms on an object store.
_READS_AT_ONCE = 16


def append(folder: Folder, reviews: pa.Table) -> str:
    """Write reviews as one new file, whole or not at all; return its name.

    The name is that of the latest review and of the contents, so that the same reviews again are
    the same file.

    Args:
        folder: The reviews table; it need not exist yet.
        reviews: Of schema `REVIEWS`, one row at least.

    Raises:
        ConfigError: if the folder is another table, or a model.
        TableError: if a row is none that can be read again, with its number from 1.
    """
    table = sorted_rows(reviews.cast(REVIEWS))
    wrong = [] if len(table) else ["there is no review"]
    wrong += [f"row {number}: {fault}" for number, fault in faults(table).items()]
    if wrong:
        raise TableError(f"{folder.path('')}: {'; '.join(wrong)}")
    require([Use(folder, "reviews", is_written=True)])
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    latest: datetime = pc.max(table.column("reviewed_at")).as_py()
    digest = hashlib.sha256(sink.getvalue()).hexdigest()[:12]
    name = f"reviews-{latest:%Y%m%dT%H%M%S.%fZ}-{digest}.parquet"
    folder.create(name, sink.getvalue())
    return name


def read(folder: Folder) -> pa.Table:
    """Return all rows of a reviews table, sorted by when they were made; none if there is none.

    Raises:
        TableError: if a file is damaged, too large, or has what no reviewer can have said.
    """
    files = [entry for entry in folder.find() if fnmatchcase(entry.name, _PATTERN)]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        tables = list(pool.map(partial(_read, folder), files))
    return sorted_rows(pa.concat_tables([REVIEWS.empty_table(), *tables]))


def _read(folder: Folder, entry: Entry) -> pa.Table:
    path = folder.path(entry.name)
    if entry.size > MOST_BYTES:
        raise TableError(f"{path} has {entry.size:,} bytes, of reviews at most {MOST_BYTES:,}")
    with reading(path, _AGAIN, TableError):
        file = pq.ParquetFile(pa.BufferReader(folder.read(entry.name, at_most=MOST_BYTES)))
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > MOST_BYTES:
            raise TableError(f"{path} has more than {MOST_BYTES:,} bytes when it is decompressed")
        found = file.read()
        found.validate(full=True)
        table = pa.Table.from_arrays([_column(found, field) for field in REVIEWS], schema=REVIEWS)
        wrong = faults(table)
        if wrong:
            number, fault = next(iter(wrong.items()))
            raise ValueError(f"row {number}: {fault}")
    return table


def _column(found: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    """Return a column; one that may be null is so in a file that was written without it."""
    if field.nullable and field.name not in found.column_names:
        return pa.nulls(len(found), field.type)
    return found.column(field.name).cast(field.type)


def sorted_rows(reviews: pa.Table) -> pa.Table:
    """Return reviews in the one order that does not depend on the order of their rows."""
    drawn = pa.array([str(boxes) for boxes in reviews.column("regions").to_pylist()], pa.string())
    others = [name for name in REVIEWS.names if name not in ("reviewed_at", "regions")]
    keys = [(name, "ascending") for name in ("reviewed_at", *others, "drawn")]
    ordered = reviews.append_column("drawn", drawn).sort_by(keys)
    return ordered.drop_columns(["drawn"]).combine_chunks()


def faults(reviews: pa.Table) -> dict[int, str]:
    """Return what is wrong with rows of schema `REVIEWS`, by their number from 1."""
    found: dict[int, str] = {}
    for field in REVIEWS:
        if not field.nullable:
            _note(found, pc.is_null(reviews.column(field.name)), f"no {field.name}")
    for name in ("image_id", "reviewer"):
        _note(found, pc.equal(reviews.column(name), ""), f"no {name}")
    for name in _TEXTS:
        length = pc.utf8_length(reviews.column(name))
        _note(found, pc.greater(length, MOST_CHARACTERS), f"{name} has too many characters")
    _note(found, pc.less(reviews.column("source_row"), 0), "source_row is negative")
    verdict, regions = reviews.column("verdict"), reviews.column("regions")
    unknown = pc.invert(pc.is_in(verdict, value_set=pa.array(VERDICTS)))
    for number in _numbers(unknown):
        said = shown(str(verdict[number - 1].as_py()))
        found.setdefault(number, f"verdict {said} is none of {', '.join(VERDICTS)}")
    for number in _numbers(pc.is_valid(regions)):
        fault = _fault_of_boxes(regions[number - 1].as_py())
        if fault:
            found.setdefault(number, fault)
    return dict(sorted(found.items()))


def _fault_of_boxes(boxes: list[dict[str, int | None] | None]) -> str:
    if len(boxes) > MOST_REGIONS:
        return f"{len(boxes)} regions, of an image at most {MOST_REGIONS}"
    return "" if all(map(_is_box, boxes)) else "a region is no box of pixels"


def _is_box(box: dict[str, int | None] | None) -> bool:
    if box is None or None in box.values():
        return False
    corner = box["x"] >= 0 and box["y"] >= 0  # type: ignore[operator]
    return corner and box["width"] > 0 and box["height"] > 0  # type: ignore[operator]


def _numbers(are_so: pa.ChunkedArray) -> list[int]:
    """Return the numbers, from 1, of rows of which something is so; null is not."""
    return [int(at) + 1 for at in pc.indices_nonzero(pc.fill_null(are_so, False)).to_pylist()]  # noqa: FBT003


def _note(found: dict[int, str], are_so: pa.ChunkedArray, fault: str) -> None:
    for number in _numbers(are_so):
        found.setdefault(number, fault)
