"""What Parquet footers say: the columns of a file, and where the rows of each group are."""

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.config import ColumnSettings, Settings
from pipeline.errors import FileDamaged, TableError
from pipeline.lake.columns import chunk_number, select
from pipeline.lake.folder import Folder, hive_keys
from pipeline.lake.fragments import keys_of
from pipeline.lake.stores import Entry
from pipeline.lake.where import Where
from pipeline.tables import IMAGES, require_columns, type_of


class Cut(NamedTuple):
    """Rows `start` to `start + images` among the rows of `group` in some row groups of a file."""

    row_groups: tuple[int, ...]
    start: int
    group: str
    images: int
    # Whether `--where` may hold in a row of these row groups.
    may_hold: bool


def read_column_names(file: pq.ParquetFile, columns: ColumnSettings, where: str) -> list[str]:
    """Return the names of our columns that this file has, after checking those it must have."""
    schema = file.schema_arrow
    required = {"image_id": columns.image_id, "group": columns.group}
    if type_of(schema, columns.image) is None and type_of(schema, columns.uri) is not None:
        required["uri"] = columns.uri
    else:
        required["image"] = columns.image
    wanted = {named: IMAGES.field(ours) for ours, named in required.items()}
    for ours in ("uri", "split", "label", "mask"):
        named = getattr(columns, ours)
        if type_of(schema, named) is not None:
            wanted[named] = IMAGES.field(ours)
    require_columns(schema, wanted, where)
    absent = [name for name in columns.extra if type_of(schema, name) is None]
    if absent:
        raise TableError(f"{where}: columns.extra names {absent}, the file has {schema.names}")
    return [*wanted, *(name for name in columns.extra if name not in wanted)]


def cut_file(
    images: Folder,
    settings: Settings,
    entry: Entry,
    where: Where | None = None,
) -> list[Cut]:
    """Return the rows of a file, cut by group into at most `fragment_images`, in row order.

    Reads the footer, and the group column of row groups that mix groups.

    Raises:
        TableError: if a column is absent, or the path and the group column disagree.
        ConfigError: if `where` has a name that is neither key nor column.
    """
    columns = settings.columns
    with images.open(entry.name, entry.version) as handle:
        try:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            # Of Arrow's complaints about a footer some are OSErrors, without an errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FileDamaged(f"{images.path(entry.name)} is not Parquet: {error}") from None
        read_column_names(file, columns, images.path(entry.name))
        counts = _groups_of_row_groups(file, columns.group, images.path(entry.name))
        found = sorted({group for counted in counts for group in counted})
        possible = {
            group: _possible(handle, file, where, keys_of(entry.name, group)) for group in found
        }
    by_folder = hive_keys(entry.name).get("g")
    if by_folder is not None and found not in ([], [by_folder]):
        raise TableError(
            f"{images.path(entry.name)}: the folder says group '{by_folder}', "
            f"column '{columns.group}' says {found}; move the file or mend the column"
        )
    cuts = []
    for group in found:
        holding = [(i, counted[group]) for i, counted in enumerate(counts) if group in counted]
        for row_groups, start, size in _slices(holding, settings.fragment_images):
            may_hold = not possible[group].isdisjoint(row_groups)
            cuts.append(Cut(row_groups, start, group, size, may_hold))
    return sorted(cuts)


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


def _groups_of_row_groups(file: pq.ParquetFile, column: str, where: str) -> list[dict[str, int]]:
    """Return, for each row group, the number of rows of each group."""
    counts = []
    flat = chunk_number(file, column)
    for number in range(file.num_row_groups):
        described = file.metadata.row_group(number)
        statistics = described.column(flat).statistics
        if (
            statistics is not None
            and statistics.has_min_max
            and statistics.has_null_count
            and statistics.null_count == 0
            and statistics.min == statistics.max
        ):
            counts.append({str(statistics.min): described.num_rows})
            continue
        values = text_of(select(file.read_row_group(number, columns=[column]), [column])[column])
        if values.null_count:
            raise TableError(
                f"{where}: column '{column}' is null in {values.null_count} of {len(values)} rows "
                f"of row group {number}; every image needs a group"
            )
        counted = pc.value_counts(values.combine_chunks()).to_pylist()
        counts.append({pair["values"]: pair["counts"] for pair in counted})
    return counts


def _possible(
    handle: BinaryIO, file: pq.ParquetFile, where: Where | None, keys: Mapping[str, str]
) -> frozenset[int]:
    """Return the row groups in which `where` may hold, by their statistics."""
    verdict = True if where is None else where.judge(keys)
    if where is None or verdict is not None:
        return frozenset(range(file.num_row_groups) if verdict else ())
    schema = file.schema_arrow
    expression = where.expression(keys, schema, keys["path"])
    table = ds.ParquetFileFormat().make_fragment(pa.PythonFile(handle, mode="r"))
    left = table.split_by_row_group(filter=expression, schema=schema)
    return frozenset(piece.row_groups[0].id for piece in left)


def text_of(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return dictionary, large or view strings as plain ones."""
    return values.cast(pa.string())
