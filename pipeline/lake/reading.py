"""Columns of one file of a lake, under our own names."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ColumnSettings
from pipeline.lake.columns import select
from pipeline.lake.folder import Folder
from pipeline.lake.s3_file import fetch_columns
from pipeline.tables import type_of


def read_named(
    images: Folder, columns: ColumnSettings, path: str, version: str, ours: Sequence[str]
) -> pa.Table:
    """Return columns of a file as text, under our names, all its rows; null where it lacks one.

    Args:
        images: The lake.
        columns: What its columns are called.
        path: The file.
        version: Its version.
        ours: Our names of the columns; one that cannot be mapped (`sha256`) is called that.
    """
    named = {name: getattr(columns, name, name) for name in ours}
    with images.open(path, version) as handle:
        file = pq.ParquetFile(handle)
        held = [theirs for theirs in named.values() if type_of(file.schema_arrow, theirs)]
        fetch_columns(handle, file, range(file.num_row_groups), held)
        table = select(file.read(columns=held), held) if held else None
        rows = file.metadata.num_rows
    absent = pa.chunked_array([pa.nulls(rows, pa.string())])
    found = {
        name: table.column(theirs).cast(pa.string()) if table and theirs in held else absent
        for name, theirs in named.items()
    }
    return pa.table(found)
