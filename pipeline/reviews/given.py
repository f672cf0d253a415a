"""Reviews that somebody names: a reviews table, or any CSV or Parquet file of decisions.

Such a file needs columns `image_id` and `verdict`, and may have any other of `REVIEWS`. Without
`reviewer` the file's name stands for one, and without `reviewed_at` the time when it was written.
In a CSV, regions are JSON: `[{"x": 10, "y": 20, "width": 5, "height": 8}]`.
"""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reading.sheets import Sheet, read_sheet
from patchlake.pipeline.reviews.table import MOST_BYTES, VERDICTS, faults, read, sorted_rows
from patchlake.pipeline.shown import listed, shown
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.tables import REVIEWS, is_text
from patchlake.pipeline.words import plain

_ENDINGS = (".csv", ".tsv", ".parquet")
_NEEDED = ("image_id", "verdict")
_SHOWN = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_given(uri: str, storage: StorageSettings) -> pa.Table:
    """Return reviews of schema `REVIEWS`, sorted.

    Args:
        uri: A reviews table, or a file whose name ends in .csv, .tsv or .parquet.
        storage: How S3 is reached.

    Raises:
        ConfigError: if there is none.
        TableError: if a file cannot be read, lacks a column, or has a cell that means nothing: then
            each is named by its row, from 1 below the header.
    """
    if uri.lower().endswith(_ENDINGS):
        base, name = split_uri(uri, storage)
        return sorted_rows(_of_sheet(base, name))
    folder = Folder.at(uri, storage)
    reviews = read(folder)
    if not len(reviews) and not folder.exists(""):
        raise ConfigError(f"there are no reviews at {folder.root}; name a folder, or a CSV file")
    return reviews


def _of_sheet(base: Folder, name: str) -> pa.Table:
    sheet = read_sheet(base, name, REVIEWS.names, at_most=MOST_BYTES)
    _require_headers(sheet)
    entry = base.entry(name)
    columns, wrong = {}, dict[int, str]()
    for field in REVIEWS:
        if field.name in sheet.table.column_names:
            columns[field.name] = _column(sheet, field, wrong)
    rows = len(sheet.table)
    every = {f.name: columns.get(f.name, pa.nulls(rows, f.type)) for f in REVIEWS}
    by_default = {"reviewer": PurePosixPath(name).name, "reviewed_at": entry.modified or _EPOCH}
    for unsaid, value in by_default.items():
        every[unsaid] = pc.fill_null(every[unsaid], pa.scalar(value, every[unsaid].type))
    arrays = list(every.values())
    table = pa.Table.from_arrays(arrays, schema=REVIEWS)
    wrong |= {number: fault for number, fault in faults(table).items() if number not in wrong}
    if wrong:
        raise TableError(f"{sheet.path}: {_told(wrong)}")
    return table


def _require_headers(sheet: Sheet) -> None:
    ours = {plain(name): name for name in REVIEWS.names}
    for header in sheet.headers:
        meant = ours.get(plain(header))
        if meant is not None and meant != header and meant not in sheet.headers:
            raise TableError(f"{sheet.path}: column {shown(header)} is not read; name it '{meant}'")
    missing = [name for name in _NEEDED if name not in sheet.headers]
    if missing:
        raise TableError(
            f"{sheet.path}: reviews need columns {listed(_NEEDED)}, it has {listed(sheet.headers)}"
        )


def _told(wrong: dict[int, str]) -> str:
    told = [f"row {number}: {wrong[number]}" for number in sorted(wrong)[:_SHOWN]]
    if len(wrong) > _SHOWN:
        told.append(f"and {len(wrong) - _SHOWN} more rows like these")
    return "; ".join(told)


def _column(sheet: Sheet, field: pa.Field, wrong: dict[int, str]) -> pa.Array:
    """Return a column of a sheet as our type; cells that mean nothing are noted, by their row."""
    if field.name == "reviewed_at":
        return pa.array(_times(sheet, field.name, wrong), field.type)
    if pa.types.is_string(field.type):
        texts = [text or None for text in sheet.texts(field.name)]
        if field.name == "verdict":
            texts = [text and _verdict(text) for text in texts]
        return pa.array(texts, field.type)
    values = sheet.table.column(field.name)
    if is_text(values.type):
        return pa.array(_parsed(sheet, field.name, wrong), field.type)
    try:
        return values.cast(field.type).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TableError(
            f"{sheet.path}: column '{field.name}' is {values.type}, it needs {field.type} ({error})"
        ) from None


def _times(sheet: Sheet, name: str, wrong: dict[int, str]) -> list[datetime | None]:
    texts, times = sheet.times(name)
    for number, (text, time) in enumerate(zip(texts, times, strict=True), 1):
        if text is not None and time is None:
            wrong.setdefault(number, f"{name} {shown(text)} is no time")
    return times


def _parsed(sheet: Sheet, name: str, wrong: dict[int, str]) -> list[object]:
    cells: list[object] = []
    for number, text in enumerate(sheet.texts(name), 1):
        try:
            cells.append(None if text is None else _READ[name](text))
        except (ValueError, KeyError, TypeError, RecursionError):
            wrong.setdefault(number, f"{name} {shown(str(text))} is no {_KINDS[name]}")
            cells.append(None)
    return cells


def _verdict(text: str) -> str:
    """Return a verdict however it is written, or the text, if it is none."""
    word = plain(text)
    return word if word in VERDICTS else text


def _number(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def _row(text: str) -> int:
    found = int(text)
    if not 0 <= found < 2**63:
        raise ValueError(text)
    return found


def _boxes(text: str) -> list[dict[str, int]]:
    names = ("x", "y", "width", "height")
    boxes = [{name: box[name] for name in names} for box in json.loads(text)]
    if not all(type(n) is int and abs(n) < 2**31 for box in boxes for n in box.values()):
        raise ValueError(text)
    return boxes


_READ: dict[str, Callable[[str], object]] = {
    "regions": _boxes,
    "source_row": _row,
    "image_score": _number,
    "p_value": _number,
    "is_anomalous": lambda text: _TRUTH[plain(text)],
}
_KINDS = {
    "regions": 'list of boxes as [{"x": 10, "y": 20, "width": 5, "height": 8}]',
    "source_row": "row number",
    "image_score": "number",
    "p_value": "number",
    "is_anomalous": "true or false",
}
