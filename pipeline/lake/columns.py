"""Columns of somebody else's table by name: `jpeg`, or `image.bytes` for a field of a struct.

Datasets of Hugging Face keep an image as a struct of bytes and path, Spark jobs nest what they
like.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Column chunks that a reader holds whole; of larger ones it reads what it wants, when it does.
HELD_BYTES = 256 * 2**20
# (begin, end) of bytes in a file.
Range = tuple[int, int]


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
