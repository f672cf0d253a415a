"""Columns of somebody else's table by name: `jpeg`, or `image.bytes` for a field of a struct.

Datasets of Hugging Face keep an image as a struct of bytes and path, Spark jobs nest what they
like.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def chunk_number(file: pq.ParquetFile, name: str) -> int:
    """Return the number of the column chunk, in each row group, that holds a column of values."""
    return [file.schema.column(i).path for i in range(len(file.schema))].index(name)


def select(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a table of these columns, under these names; what is missing raises `KeyError`.

    Strings and binaries that are views become plain ones: Arrow 26 cannot filter views.
    """
    return pa.table({name: _plain(_column(table, name)) for name in names})


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table.column(name)
    first, *inner = name.split(".")
    return pc.struct_field(table.column(first), inner)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return values.cast(plain[values.type]) if values.type in plain else values
