"""How our own Parquet is written: images, and score rows in an order that statistics prune by."""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Order = Sequence[tuple[str, str]]

_PLACE = (("source_path", "ascending"), ("source_row", "ascending"))
# A part is one fragment: one group, rows as they lie in the source file.
PART_ORDER: Order = (("group", "ascending"), *_PLACE)
# Of a compacted file: the worst of a group lie together, so that a query for the worst, or for
# scores above a limit, can skip most row groups. Rows without a score are last.
TABLE_ORDER: Order = (("group", "ascending"), ("image_score", "descending"), *_PLACE)

# Some 5,000 rows with maps of 28 x 28, so that a file of 128 MB has eight or more to skip.
_ROW_GROUP_BYTES = 16 * 2**20
_FEWEST_ROWS, _MOST_ROWS = 1024, 131_072

# Different in every row: a dictionary only costs. Where one is tried for every column, as is
# pyarrow's default, 256 rows with maps of 28 x 28 take 1.12 MB instead of 0.68 MB.
# (BYTE_STREAM_SPLIT would take 0.58 MB, but not every engine in use decodes it.)
_NO_DICTIONARY = {"image_id", "heatmap_path"}
# Of an images table.
_BLOBS = ("image", "mask")
# Nobody asks for a range of these.
_NO_STATISTICS = {"error", "heatmap_path"}


def write_sorted(table: pa.Table, sink: BinaryIO, order: Order) -> None:
    """Write rows as one Parquet file, sorted.

    Equal rows in, equal bytes out, if `order` is total. Holds one row group beside the table.
    """
    # Once: taking from many chunks would join them for every row group.
    table = table.combine_chunks()
    indices = pc.sort_indices(table, sort_keys=list(order))  # nulls last
    rows = _rows_of_a_group(table)
    with pq.ParquetWriter(sink, table.schema, **_options(table.schema, order)) as writer:
        for start in range(0, len(table), rows):
            writer.write_table(table.take(indices.slice(start, rows)), row_group_size=rows)


def images_writer(sink: object, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of an images table, whose pages have checksums, as the reader verifies them.

    Encoded images do not compress again, and are never equal.
    """
    others = [name for name in schema.names if name not in _BLOBS]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={name: "none" if name in _BLOBS else "zstd" for name in schema.names},
        use_dictionary=others,
        write_page_checksum=True,
    )


def _options(schema: pa.Schema, order: Order) -> dict[str, object]:
    flat = [field for field in schema if not pa.types.is_nested(field.type)]
    texts = [f.name for f in flat if _is_text(f.type) and f.name not in _NO_DICTIONARY]
    pruning = [f.name for f in flat if f.name not in _NO_STATISTICS and not _is_blob(f.type)]
    sorting = pq.SortingColumn.from_ordering(schema, list(order), null_placement="at_end")
    return {
        "compression": "zstd",
        "use_dictionary": texts,
        "write_statistics": pruning,
        "write_page_index": True,
        # Of 4 bytes a page: an engine that checks them notices a bit that a disk lost.
        "write_page_checksum": True,
        "sorting_columns": sorting,
    }


def _rows_of_a_group(table: pa.Table) -> int:
    row_bytes = max(1, int(table.nbytes) // max(1, len(table)))
    return min(max(_ROW_GROUP_BYTES // row_bytes, _FEWEST_ROWS), _MOST_ROWS)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_blob(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
