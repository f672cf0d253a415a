"""The rows of a fragment, out of its Parquet file."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import ColumnSettings
from pipeline.lake.columns import HELD_BYTES, chunk_ranges, select
from pipeline.lake.footers import text_of
from pipeline.lake.fragments import Fragment

# Arrow reads a column chunk whole, unless it is told to read as it goes: then a page at a time,
# which writers make 1 MB, or 1,024 rows.
_BUFFER_BYTES = 8 * 2**20


def opened_for(
    handle: BinaryIO, file: pq.ParquetFile, row_groups: Sequence[int], names: Sequence[str]
) -> pq.ParquetFile:
    """Return the file, to be read page by page if these columns are more than one can hold."""
    ranges = chunk_ranges(file, row_groups, names)
    if sum(end - begin for begin, end in ranges) <= HELD_BYTES:
        return file
    return pq.ParquetFile(
        handle,
        metadata=file.metadata,
        buffer_size=_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def group_rows(
    file: pq.ParquetFile, fragment: Fragment, columns: ColumnSettings, names: Sequence[str]
) -> Iterator[tuple[pa.Array, pa.Table]]:
    """Yield a fragment's rows in file order, with their row numbers in the file.

    Reads small batches: a row group of somebody else's table may be a gigabyte. Open it with
    `opened_for`.
    """
    wanted = [*dict.fromkeys([*names, columns.group])]
    passed = 0
    for row_group in fragment.row_groups:
        first = sum(file.metadata.row_group(i).num_rows for i in range(row_group))
        for read in file.iter_batches(batch_size=64, row_groups=[row_group], columns=wanted):
            table = select(pa.Table.from_batches([read]), wanted)
            numbers = pa.array(range(first, first + len(table)), pa.int64())
            first += len(table)
            mine = pc.equal(text_of(table.column(columns.group)), fragment.group).combine_chunks()
            numbers, rows = numbers.filter(mine), table.filter(mine)
            begin = min(max(fragment.start - passed, 0), len(rows))
            end = min(max(fragment.start + fragment.images - passed, 0), len(rows))
            passed += len(rows)
            if end > begin:
                yield numbers[begin:end], rows.slice(begin, end - begin).select(names)
            if passed >= fragment.start + fragment.images:
                return
