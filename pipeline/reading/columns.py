"""Columns of somebody else's table by name: `jpeg`, or `image.bytes` for a field of a struct.

Datasets of Hugging Face keep an image as a struct of bytes and path, Spark jobs nest what they
like.
"""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.storage.s3_file import Range, RangedFile


def chunk_number(file: pq.ParquetFile, name: str) -> int | None:
    """Return the number of the column chunk, in each row group, that holds a column of values."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return paths.index(name) if name in paths else None


def chunk_ranges(
    file: pq.ParquetFile, row_groups: Sequence[int], names: Sequence[str]
) -> list[Range]:
    """Return where in the file the chunks of these columns are, fields of structs included.

    Asks a footer about these columns only: of a damaged one, Arrow 26 ends the process when it is
    asked about another.
    """
    wanted, ranges = tuple(f"{name}." for name in names), []
    leaves = range(len(file.schema))
    numbers = [i for i in leaves if f"{file.schema.column(i).path}.".startswith(wanted)]
    for row_group in map(file.metadata.row_group, row_groups):
        for chunk in map(row_group.column, numbers):
            begin = chunk.dictionary_page_offset or chunk.data_page_offset
            begin = min(begin, chunk.data_page_offset)
            ranges.append((begin, begin + chunk.total_compressed_size))
    return ranges


def fetch_columns(
    handle: BinaryIO, file: pq.ParquetFile, row_groups: Sequence[int], names: Sequence[str]
) -> None:
    """Get all that reading these columns takes, in one request where they lie together.

    Does nothing for a file that is not in S3.
    """
    if not isinstance(handle, RangedFile):
        return
    handle.fetch(chunk_ranges(file, row_groups, names))


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
