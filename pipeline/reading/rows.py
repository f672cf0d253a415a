"""The rows of a fragment, out of its Parquet file."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.reading.columns import chunk_ranges, select
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.reading.named import RowReader
from patchlake.pipeline.storage.s3_file import HELD_BYTES

# Arrow reads a column chunk whole, unless it is told to read as it goes: then a page at a time,
# which writers make 1 MB, or 1,024 rows.
_BUFFER_BYTES = 8 * 2**20
# Rows of a batch: a row group of somebody else's table may be a gigabyte.
_ROWS = 64
# What Arrow says of a struct's field that would pass 2 GiB in one batch.
_TOO_MUCH = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowCapacityError)


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
    file: pq.ParquetFile, fragment: Fragment, reader: RowReader, asked: Sequence[str] = ()
) -> Iterator[tuple[pa.Array, pa.Table, pa.Table]]:
    """Yield a fragment's rows in file order: their numbers in the file, as ours, and as theirs.

    Reads small batches. Open the file with `opened_for`.

    Args:
        file: The Parquet file.
        fragment: Which rows.
        reader: Makes our columns of theirs; the group is among them.
        asked: Names of columns of theirs that are yielded as they are.

    Raises:
        TableError: as `Reader.read`.
    """
    wanted = list(dict.fromkeys([*reader.names, *asked]))
    passed = 0
    for row_group in fragment.row_groups:
        first = sum(file.metadata.row_group(i).num_rows for i in range(row_group))
        for table, rows in _batches(file, row_group, wanted):
            numbers = pa.array(range(first, first + rows), pa.int64())
            first += rows
            ours = reader.read(table, rows)
            theirs = table.select(asked)
            mine = pc.equal(ours.column("group"), fragment.group).combine_chunks()
            numbers, ours = numbers.filter(mine), ours.filter(mine)
            theirs = theirs.filter(mine) if asked else theirs
            begin = min(max(fragment.start - passed, 0), len(numbers))
            end = min(max(fragment.start + fragment.images - passed, 0), len(numbers))
            passed += len(numbers)
            if end > begin:
                size = end - begin
                yield numbers[begin:end], ours.slice(begin, size), theirs.slice(begin, size)
            if passed >= fragment.start + fragment.images:
                return


def numbered_rows(
    file: pq.ParquetFile, numbers: Sequence[int], reader: RowReader
) -> Iterator[tuple[int, pa.Table]]:
    """Yield some rows of a file as ours, one at a time, with their numbers; those it has not, not.

    Reads the row groups that have one of them, up to the last of them. Open the file with
    `opened_for`.

    Args:
        file: The Parquet file.
        numbers: Of rows, from 0.
        reader: Makes our columns of theirs.

    Raises:
        TableError: as `Reader.read`.
    """
    for row_group, (begin, end) in enumerate(_row_groups(file)):
        wanted = sorted({number for number in numbers if begin <= number < end})
        passed = begin
        for table, rows in _batches(file, row_group, reader.names) if wanted else ():
            for number in wanted:
                if passed <= number < passed + rows:
                    yield number, reader.read(table.slice(number - passed, 1), 1)
            passed += rows
            if passed > wanted[-1]:
                break


def row_groups_of(file: pq.ParquetFile, numbers: Sequence[int]) -> list[int]:
    """Return the row groups that have one of these rows."""
    spans = enumerate(_row_groups(file))
    return [at for at, (first, end) in spans if any(first <= n < end for n in numbers)]


def _row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """Yield the number of the first row of each row group, and of the first one after it."""
    first = 0
    for number in range(file.num_row_groups):
        end = first + file.metadata.row_group(number).num_rows
        yield first, end
        first = end


def _batches(
    file: pq.ParquetFile, row_group: int, names: Sequence[str]
) -> Iterator[tuple[pa.Table, int]]:
    """Yield columns of a row group, a few rows at a time, with the number of rows."""
    if not names:
        yield pa.table({}), file.metadata.row_group(row_group).num_rows
        return
    done, size = 0, _ROWS
    while size:
        try:
            passed = 0
            for read in file.iter_batches(size, row_groups=[row_group], columns=list(names)):
                passed += read.num_rows
                # Of a second start, what came before it failed.
                if passed <= done:
                    continue
                yield select(pa.Table.from_batches([read]), names), read.num_rows
                done = passed
            size = 0
        except _TOO_MUCH:
            # Row by row even a struct's field stays below Arrow's 2 GiB.
            size //= _ROWS
            if not size:
                raise
