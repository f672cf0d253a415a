"""The cells of a manifest: a CSV or Parquet file's columns of ours, as text and times.

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

COLUMNS = ("uri", "image_id", "group", "split", "label", "mask_uri", "captured_at", "part_id")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_A_DAY = 24 * 60 * 60
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Our column -> its cell.
Row = dict[str, str | None]


@dataclass(frozen=True)
class Cells:
    """What a manifest says: all its headers, and the rows of the columns that are ours."""

    headers: list[str]
    rows: list[Row]
    # When the pictures were taken; None where that is not said, or cannot be read.
    times: list[datetime | None]


def read_cells(base: Folder, file_name: str, extra: Sequence[str] = ()) -> Cells:
    """Return the cells of a manifest, of our columns and of `extra` ones.

    Raises:
        ConfigError: if there is no such file.
        TableError: if it cannot be read, has a column twice, or one of a type without text.
    """
    path = base.path(file_name)
    named = (*COLUMNS, *extra)
    try:
        content = base.read(file_name)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    try:
        if file_name.lower().endswith(".parquet"):
            headers, table = apart(base, Call(partial(_parquet, named), content, path))
        else:
            headers, table = _csv(named, content)
    except (FileDamaged, pa.ArrowInvalid, UnicodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read: {error}") from None
    _require_once(named, headers, path)
    times: list[datetime | None] = [None] * len(table)
    columns = {}
    for name in named:
        if name in table.column_names:
            values = table.column(name)
            columns[name] = _texts(values, table.schema, name, path)
            if name == "captured_at":
                times = _times(values, columns[name])
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Cells(headers, rows, times)


def _require_once(named: Sequence[str], headers: Sequence[str], path: str) -> None:
    twice = [name for name in named if headers.count(name) > 1]
    if twice:
        raise TableError(
            f"{path}: column '{twice[0]}' is there {headers.count(twice[0])} times, and which one "
            "counts is not known; remove or rename the others"
        )


def _parquet(named: Sequence[str], content: bytes) -> tuple[list[str], pa.Table]:
    """Return all headers, and the columns of ours: others may be of types that nobody can read."""
    file = pq.ParquetFile(pa.BufferReader(content))
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


def _texts(values: pa.ChunkedArray, schema: pa.Schema, name: str, path: str) -> list[str | None]:
    ticks = pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)
    if name == "captured_at" and ticks:
        return [None if time is None else f"{time} since 1970" for time in _ticks(values)]
    if not has_text(values.type):
        raise TableError(
            f"{path}: column '{name}' is {values.type}, of which a cell is no text; write it as "
            "text, or rename the column"
        )
    try:
        found: list[str | None] = as_text(values, class_names(schema, name)).to_pylist()
    except ValueError as error:
        raise TableError(
            f"{path}: column '{name}' has {error}; write it as text, or rename the column"
        ) from None
    return found


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


def _times(values: pa.ChunkedArray, texts: Sequence[str | None]) -> list[datetime | None]:
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return [None if ticks is None else ticks.time for ticks in _ticks(values)]
    return [None if text is None else _read_time(text) for text in texts]


def _read_time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.strip())
        # In the first and the last hours of all years another zone's time has no UTC.
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
