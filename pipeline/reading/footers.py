"""What Parquet footers say: the columns of a file, and where the rows of each group are."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import FileDamaged, TableError
from patchlake.pipeline.reading.columns import chunk_number, select
from patchlake.pipeline.reading.fragments import keys_of
from patchlake.pipeline.reading.layout import Layout
from patchlake.pipeline.reading.named import RowReader
from patchlake.pipeline.reading.values import shown
from patchlake.pipeline.storage.folder import Folder, is_component_of, unescape
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import IMAGES, require_columns
from patchlake.pipeline.where.condition import Where

# Groups that a message shows.
_NAMED = 3
# Columns that every verb reads: one that a setting names has to be somewhere.
_ASKED = ("image_id", "image", "uri", "group", "roi")


class Cut(NamedTuple):
    """Rows `start` to `start + images` among the rows of `group` in some row groups of a file."""

    row_groups: tuple[int, ...]
    start: int
    group: str
    images: int
    # Whether `--where` may hold in a row of these row groups.
    may_hold: bool


class Cuts(NamedTuple):
    """The rows of a file, and the names that it lacks, with what to say if every file does.

    They are those of `where`, and those that the settings give to our columns.
    """

    cuts: list[Cut]
    absent: dict[str, str]


def cut_file(
    images: Folder,
    settings: Settings,
    entry: Entry,
    where: Where | None = None,
) -> Cuts:
    """Return the rows of a file, cut by group into at most `fragment_images`, in row order.

    Reads the footer, and the group column of row groups that mix groups.

    Raises:
        TableError: if there is no group or no image, or the path and the group column disagree.
        ConfigError: if what `where` compares does not go together.
    """
    path = images.path(entry.name)
    with images.open(entry.name, entry.version) as handle:
        file = _opened(handle, path)
        layout = Layout(file.schema_arrow, settings.columns, entry.name, path)
        if file.metadata.num_rows:
            _require_images(layout)
        counts = _groups_of_row_groups(file, layout)
        found = sorted({group for counted in counts for group in counted})
        possible = {
            group: _possible(handle, file, where, keys_of(entry.name, group)) for group in found
        }
    by_folder = _folder_of_group(entry.name)
    if by_folder is not None and not all(is_component_of(by_folder, group) for group in found):
        raise TableError(
            f"{path}: the folder says group {shown(unescape(by_folder))}, column "
            f"'{settings.columns.group}' says {', '.join(map(shown, found[:_NAMED]))}; "
            "move the file or mend the column"
        )
    cuts = []
    for group in found:
        holding = [(i, counted[group]) for i, counted in enumerate(counts) if group in counted]
        for row_groups, start, size in _slices(holding, settings.fragment_images):
            may_hold = not possible[group].isdisjoint(row_groups)
            cuts.append(Cut(row_groups, start, group, size, may_hold))
    keys = keys_of(entry.name, found[0]) if found else {}
    absent = layout.absent(_ASKED)
    if where is not None and found:
        absent |= where.absent(keys, layout.schema, path)
    return Cuts(sorted(cuts), absent)


def _slices(
    holding: Sequence[tuple[int, int]], size: int
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Cut (row group, rows) into (row groups, first row in them, rows) of at most `size` rows."""
    touched: list[int] = []
    first = filled = 0
    for row_group, rows in holding:
        at = 0
        while at < rows:
            if not touched:
                first = at
            touched.append(row_group)
            taken = min(rows - at, size - filled)
            at, filled = at + taken, filled + taken
            if filled == size:
                yield tuple(touched), first, size
                touched, filled = [], 0
    if filled:
        yield tuple(touched), first, filled


def _opened(handle: BinaryIO, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(handle, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        # Of Arrow's complaints about a footer some are OSErrors, without an errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FileDamaged(f"{path} is not Parquet: {error}") from None


def _require_images(layout: Layout) -> None:
    """Raise `TableError` if a file has no images: neither them nor where they are."""
    RowReader(layout, ("image_id", "image", "uri")).require_readable()
    image, uri = layout.ours("image"), layout.ours("uri")
    if not image.is_somewhere and not uri.is_somewhere:
        require_columns(layout.schema, {image.name: IMAGES.field("image")}, layout.where)


def _folder_of_group(name: str) -> str | None:
    """Return the folder `g=`, as it is, which `ingest` puts a group's files into."""
    parts = (part.partition("=") for part in PurePosixPath(name).parts[:-1])
    return next((value for key, _, value in parts if key == "g"), None)


def _groups_of_row_groups(file: pq.ParquetFile, layout: Layout) -> list[dict[str, int]]:
    """Return, for each row group, the number of rows of each group."""
    reader = RowReader(layout, ("group",))
    reader.require_readable()
    place = layout.ours("group")
    flat = None if place.column is None else chunk_number(file, place.column)
    counts: list[dict[str, int]] = []
    for number in range(file.num_row_groups):
        described = file.metadata.row_group(number)
        # Of an empty row group some readers make an error.
        if not described.num_rows:
            counts.append({})
            continue
        one = None if flat is None else _only_value(described.column(flat))
        if one is not None:
            held, rows = pa.table({place.column: [one]}), 1
        elif place.column is not None:
            read = file.read_row_group(number, columns=[place.column])
            held, rows = select(read, [place.column]), described.num_rows
        else:
            held, rows = pa.table({}), 1
        values = reader.text(held, "group", rows)
        if values.null_count:
            raise _without_group(layout, number, values, described.num_rows)
        counted = pc.value_counts(values.combine_chunks()).to_pylist()
        shared = described.num_rows if rows == 1 else None
        counts.append({pair["values"]: shared or pair["counts"] for pair in counted})
    return counts


def _only_value(chunk: pq.ColumnChunkMetaData) -> str | int | None:
    """Return the one value of a column chunk, where its statistics show that there is one."""
    found = chunk.statistics
    if found is None or not (found.has_min_max and found.has_null_count) or found.null_count:
        return None
    try:
        one, other = found.min, found.max
    except UnicodeDecodeError:
        return None
    if type(one) not in (str, int) or one != other or len(str(one)) > _CUT_OFF:
        return None
    return one  # type: ignore[no-any-return]


# Some writers keep no more of a text in statistics, nor say so.
_CUT_OFF = 15


def _without_group(
    layout: Layout, row_group: int, values: pa.ChunkedArray, rows: int
) -> TableError:
    place, where = layout.ours("group"), layout.where
    if not place.is_somewhere:
        return TableError(
            f"{where}: column '{place.name}' (group) is missing; the file has: "
            f"{', '.join(layout.schema.names)}. Map it with --set columns.group=NAME, or say "
            "--group NAME if all images of the table are of one group"
        )
    nulls = values.null_count if len(values) == rows else rows
    return TableError(
        f"{where}: column '{place.name}' is null in {nulls} of {rows} rows of row group "
        f"{row_group}; every image needs a group: mend the column, or say --group NAME if all "
        "images of the table are of one group"
    )


def _possible(
    handle: BinaryIO, file: pq.ParquetFile, where: Where | None, keys: Mapping[str, str]
) -> frozenset[int]:
    """Return the row groups in which `where` may hold, by their statistics."""
    if where is None:
        return frozenset(range(file.num_row_groups))
    schema = file.schema_arrow
    known = where.completed(keys, schema)
    verdict = where.judge(known)
    if verdict is not None:
        return frozenset(range(file.num_row_groups) if verdict else ())
    expression = where.for_statistics(known, schema, keys["path"])
    table = ds.ParquetFileFormat().make_fragment(pa.PythonFile(handle, mode="r"))
    left = table.split_by_row_group(filter=expression, schema=schema)
    return frozenset(piece.row_groups[0].id for piece in left)
