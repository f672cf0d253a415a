"""The plan: the images of a lake, cut into fragments, from Parquet footers.

A fragment is the unit of work and of commit: up to `fragment_images` rows of one group in one
file. The cut depends on the files alone, never on `--where`, workers or what is already done, so
that a rerun finds the same fragments under the same keys.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import ColumnSettings
from pipeline.errors import ConfigError, TableError
from pipeline.lake.folder import Entry, Folder, hive_keys
from pipeline.tables import IMAGES, OUTPUT_VERSION, PLAN, require_columns

# Footers are a few KB behind a latency of tens of ms on an object store.
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, order=True)
class Fragment:
    """Rows `start` to `start + images` among the rows of `group` in `row_groups` of `path`."""

    path: str
    row_groups: tuple[int, ...]
    start: int
    group: str
    images: int
    version: str
    key: str = ""

    def keyed(self, settings_digest: str) -> "Fragment":
        """Return the fragment with the key under which these settings' result is stored."""
        identity = [self.path, self.version, self.row_groups, self.start, self.images, self.group]
        text = json.dumps([*identity, settings_digest, OUTPUT_VERSION])
        return replace(self, key=hashlib.sha256(text.encode()).hexdigest()[:20])

    def to_json(self) -> str:
        """Return the fragment as text; `from_json` undoes it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Fragment":
        """Return the fragment that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"row_groups": tuple(fields["row_groups"])})


def list_tables(images: Folder) -> list[Entry]:
    """Return the Parquet files of a lake, by path; folders that begin with _ or . are not data.

    Raises:
        ConfigError: if there is none.
    """
    entries = [
        entry
        for entry in images.find()
        if entry.name.endswith(".parquet")
        and not any(part.startswith(("_", ".")) for part in entry.name.split("/"))
    ]
    if not entries:
        raise ConfigError(f"{images.root} holds no Parquet file; run `patchlake ingest` first")
    return entries


def plan(
    images: Folder, columns: ColumnSettings, fragment_images: int, *, entries: Sequence[Entry] = ()
) -> list[Fragment]:
    """Return all fragments of the lake, without keys, in (path, first row, group) order.

    Reads footers, and the group column of files that mix groups in a row group.

    Raises:
        TableError: if a column is absent, or a path and a group column disagree.
    """
    cut = partial(_cut, images, columns, fragment_images)
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return [f for cuts in pool.map(cut, entries or list_tables(images)) for f in cuts]


def read_column_names(file: pq.ParquetFile, columns: ColumnSettings, where: str) -> list[str]:
    """Return the names of our columns that this file has, after checking those it must have."""
    schema = file.schema_arrow
    required = {"image_id": columns.image_id, "group": columns.group}
    if columns.image not in schema.names and columns.uri in schema.names:
        required["uri"] = columns.uri
    else:
        required["image"] = columns.image
    wanted = {named: IMAGES.field(ours) for ours, named in required.items()}
    for ours in ("uri", "split", "label", "mask"):
        named = getattr(columns, ours)
        if named in schema.names:
            wanted[named] = IMAGES.field(ours)
    require_columns(schema, wanted, where)
    absent = [name for name in columns.extra if name not in schema.names]
    if absent:
        raise TableError(f"{where}: columns.extra names {absent}, the file has {schema.names}")
    return [*wanted, *(name for name in columns.extra if name not in wanted)]


def group_rows(
    file: pq.ParquetFile, fragment: Fragment, columns: ColumnSettings, names: Sequence[str]
) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
    """Yield a fragment's rows in file order, with their row numbers in the file.

    Reads small batches: a row group of somebody else's table may be a gigabyte.
    """
    wanted = [*dict.fromkeys([*names, columns.group])]
    passed = 0
    for row_group in fragment.row_groups:
        first = sum(file.metadata.row_group(i).num_rows for i in range(row_group))
        for read in file.iter_batches(batch_size=64, row_groups=[row_group], columns=wanted):
            batch = _without_views(read)
            numbers = pa.array(range(first, first + batch.num_rows), pa.int64())
            first += batch.num_rows
            mine = pc.equal(_text(batch.column(columns.group)), fragment.group)
            numbers, rows = numbers.filter(mine), batch.filter(mine)
            begin = min(max(fragment.start - passed, 0), rows.num_rows)
            end = min(max(fragment.start + fragment.images - passed, 0), rows.num_rows)
            passed += rows.num_rows
            if end > begin:
                yield numbers[begin:end], rows.slice(begin, end - begin).select(names)
            if passed >= fragment.start + fragment.images:
                return


def to_table(fragments: Sequence[Fragment]) -> pa.Table:
    """Return the plan as a table of schema `PLAN`."""
    columns = {name: [getattr(f, name) for f in fragments] for name in PLAN.names}
    return pa.table(columns, schema=PLAN)


def from_table(table: pa.Table) -> list[Fragment]:
    """Return the fragments that `to_table` wrote."""
    return [Fragment(**row | {"row_groups": tuple(row["row_groups"])}) for row in table.to_pylist()]


def keys_of(fragment: Fragment) -> dict[str, str]:
    """Return the names that `--where` may use, with the fragment's values."""
    return {**hive_keys(fragment.path), "group": fragment.group, "path": fragment.path}


def _cut(
    images: Folder, columns: ColumnSettings, fragment_images: int, entry: Entry
) -> list[Fragment]:
    with images.open(entry.name) as handle:
        try:
            file = pq.ParquetFile(handle)
        except (pa.ArrowInvalid, OSError) as error:
            # Of Arrow's complaints about a footer some are OSErrors, without an errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise TableError(f"{images.path(entry.name)} is not Parquet: {error}") from None
        read_column_names(file, columns, images.path(entry.name))
        counts = _groups_of_row_groups(file, columns.group, images.path(entry.name))
    by_folder = hive_keys(entry.name).get("g")
    found = sorted({group for counted in counts for group in counted})
    if by_folder is not None and found not in ([], [by_folder]):
        raise TableError(
            f"{images.path(entry.name)}: the folder says group '{by_folder}', "
            f"column '{columns.group}' says {found}; move the file or mend the column"
        )
    fragments = []
    for group in found:
        holding = [(i, counted[group]) for i, counted in enumerate(counts) if group in counted]
        for row_groups, start, size in _slices(holding, fragment_images):
            fragments.append(
                Fragment(entry.name, row_groups, start, group, size, version=entry.version)
            )
    return sorted(fragments)


def _slices(
    holding: Sequence[tuple[int, int]], size: int
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Cut (row group, rows) into (row groups, first row in them, rows) of at most `size` rows."""
    total = sum(rows for _, rows in holding)
    for begin in range(0, total, size):
        end = min(begin + size, total)
        touched: list[int] = []
        before = first = 0
        for row_group, rows in holding:
            if before < end and before + rows > begin:
                if not touched:
                    first = before
                touched.append(row_group)
            before += rows
        yield tuple(touched), begin - first, end - begin


def _groups_of_row_groups(file: pq.ParquetFile, column: str, where: str) -> list[dict[str, int]]:
    """Return, for each row group, the number of rows of each group."""
    counts = []
    position = file.schema_arrow.get_field_index(column)
    flat = [file.schema.column(i).path for i in range(len(file.schema))].index(column)
    assert position >= 0
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
        values = _text(file.read_row_group(number, columns=[column]).column(column))
        if values.null_count:
            raise TableError(
                f"{where}: column '{column}' is null in {values.null_count} of {len(values)} rows "
                f"of row group {number}; every image needs a group"
            )
        counted = pc.value_counts(values.combine_chunks()).to_pylist()
        counts.append({pair["values"]: pair["counts"] for pair in counted})
    return counts


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return string and binary views as plain ones: Arrow 26 cannot filter views."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.RecordBatch.from_arrays(
        [column.cast(plain.get(column.type, column.type)) for column in batch.columns],
        names=batch.schema.names,
    )


def _text(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return dictionary, large or view strings as plain ones."""
    return values.cast(pa.string())
