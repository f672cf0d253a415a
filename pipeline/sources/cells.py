"""The cells of a manifest: a CSV or Parquet file's columns of ours, as text and times.

How such files are read is in `pipeline.reading.sheets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from patchlake.pipeline.reading.sheets import read_sheet
from patchlake.pipeline.storage.folder import Folder

COLUMNS = ("uri", "image_id", "group", "split", "label", "mask_uri", "captured_at", "part_id")
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
    named = (*COLUMNS, *extra)
    sheet = read_sheet(base, file_name, named)
    times: list[datetime | None] = [None] * len(sheet.table)
    columns = {}
    for name in named:
        if name in sheet.table.column_names:
            if name == "captured_at":
                columns[name], times = sheet.times(name)
            else:
                columns[name] = sheet.texts(name)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Cells(sheet.headers, rows, times)
