"""A sheet: a CSV or Parquet file that a person or their program has made, by columns of ours.

CSV is UTF-8 (or UTF-16 with a byte order mark), separated by comma, semicolon or tab; all its cells
are text, so that 007 stays 007. A Parquet file's are made text as those of a lake
(`pipeline.reading.values`). A time without a zone is in UTC.
"""

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError, FileDamaged, TableError
from patchlake.pipeline.reading.apart import Call, apart
from patchlake.pipeline.reading.values import as_text, class_names
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import has_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_A_DAY = 24 * 60 * 60
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Sheet:
    """All headers of a file, and its columns of ours as they are there."""

    path: str
    headers: list[str]
    table: pa.Table

    def texts(self, name: str) -> list[str | None]:
        """Return a column as text. Raises `TableError` if a cell has no spelling."""
        values = self.table.column(name)
        if not has_text(values.type):
            raise TableError(
                f"{self.path}: column '{name}' is {values.type}, of which a cell is no text; write "
                "it as text, or rename the column"
            )
        try:
            names = class_names(self.table.schema, name)
            found: list[str | None] = as_text(values, names).to_pylist()
        except ValueError as error:
            raise TableError(
                f"{self.path}: column '{name}' has {error}; write it as text, or rename the column"
            ) from None
        return found

    def times(self, name: str) -> tuple[list[str | None], list[datetime | None]]:
        """Return a column of times as text and as times; None where there is none, or no time."""
        values = self.table.column(name)
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
            ticks = _ticks(values)
            texts = [None if time is None else f"{time} since 1970" for time in ticks]
            return texts, [None if one is None else one.time for one in ticks]
        written = self.texts(name)
        return written, [None if text is None else _read_time(text) for text in written]


def read_sheet(
    base: Folder, file_name: str, named: Sequence[str], *, at_most: int | None = None
) -> Sheet:
    """Return the columns of a file that have these names.

    Args:
        base: The folder of the file.
        file_name: A name that ends in .parquet is of a Parquet file; all others are of CSV.
        named: Columns of ours.
        at_most: Bytes that the file may have, as it lies there and decompressed.

    Raises:
        ConfigError: if there is no such file.
        TableError: if it cannot be read, is larger, or has a column of ours twice.
    """
    path = base.path(file_name)
    try:
        content = base.read(file_name, at_most=None if at_most is None else at_most + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    _require_at_most(len(content), at_most, path)
    try:
        if file_name.lower().endswith(".parquet"):
            read = partial(_parquet, named, at_most, path)
            headers, table = apart(base, Call(read, content, path))
        else:
            headers, table = _csv(named, content)
    except (FileDamaged, pa.ArrowInvalid, UnicodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read: {error}") from None
    twice = [name for name in named if headers.count(name) > 1]
    if twice:
        raise TableError(
            f"{path}: column '{twice[0]}' is there {headers.count(twice[0])} times, and which one "
            "counts is not known; remove or rename the others"
        )
    return Sheet(path, headers, table)


def _require_at_most(found: int, at_most: int | None, path: str) -> None:
    if at_most is not None and found > at_most:
        raise TableError(f"{path} has more than the {at_most:,} bytes that are read of such a file")


def _parquet(
    named: Sequence[str], at_most: int | None, path: str, content: bytes
) -> tuple[list[str], pa.Table]:
    """Return all headers, and the columns of ours: others may be of types that nobody can read."""
    file = pq.ParquetFile(pa.BufferReader(content))
    footer = file.metadata
    groups = range(footer.num_row_groups)
    _require_at_most(sum(footer.row_group(n).total_byte_size for n in groups), at_most, path)
    headers = list(file.schema_arrow.names)
    ours = [name for name in named if headers.count(name) == 1]
    # Arrow adds what is called `label.x` to what is called `label`.
    return headers, file.read(columns=ours).select(ours)


def _csv(named: Sequence[str], content: bytes) -> tuple[list[str], pa.Table]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16").encode()
    text = content.decode("utf-8-sig")
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    names = next(csv.reader([header.rstrip("\r")], delimiter=separator), [])
    options = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    parse = pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    table: pa.Table = pa_csv.read_csv(
        io.BytesIO(text.encode()), parse_options=parse, convert_options=options
    )
    ours = [name for name in named if table.column_names.count(name) == 1]
    return list(table.column_names), table.select(ours)


@dataclass(frozen=True)
class _Ticks:
    """A time as Arrow keeps it, which Python's may not reach: it ends with the year 9999."""

    number: int
    unit: str

    def __str__(self) -> str:
        return f"{self.number} {self.unit}"

    @property
    def time(self) -> datetime | None:
        """The time; None where it is out of reach."""
        try:
            return _EPOCH + timedelta(microseconds=self.number * 10**6 // _PER_SECOND[self.unit])
        except OverflowError:
            return None


def _ticks(values: pa.ChunkedArray) -> list[_Ticks | None]:
    """Return times in UTC, whatever zone a column names: it is only how they are shown."""
    if pa.types.is_date32(values.type):
        days = values.cast(pa.int32()).to_pylist()
        return [None if day is None else _Ticks(day * _SECONDS_A_DAY, "s") for day in days]
    unit = "ms" if pa.types.is_date(values.type) else values.type.unit
    cells = values.cast(pa.int64()).to_pylist()
    return [None if cell is None else _Ticks(cell, unit) for cell in cells]


def _read_time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.strip())
        # In the first and the last hours of all years another zone's time has no UTC.
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
