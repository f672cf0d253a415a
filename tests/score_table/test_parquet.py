"""What we write is noticed when a disk loses a bit of it."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.score_table.parquet import PART_ORDER, images_writer, write_sorted
from patchlake.pipeline.tables import IMAGES


def _flipped(content: bytes, column: str) -> io.BytesIO:
    footer = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    chunks = [footer.column(number) for number in range(footer.num_columns)]
    [chunk] = [one for one in chunks if one.path_in_schema == column]
    changed = bytearray(content)
    changed[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    return io.BytesIO(bytes(changed))


def _read(file: io.BytesIO) -> pa.Table:
    return pq.ParquetFile(file, page_checksum_verification=True).read()


def test_a_bit_of_an_image_or_of_a_score_is_noticed():
    images, scores = io.BytesIO(), io.BytesIO()
    row = {"image_id": "1", "image": b"\x01" * 40_000, "group": "tile"}
    with images_writer(images, IMAGES) as writer:
        writer.write_table(pa.Table.from_pylist([row], schema=IMAGES))
    rows = {"group": ["tile"] * 99, "source_path": ["a"] * 99, "source_row": range(99)}
    write_sorted(pa.table({**rows, "image_score": [n / 7 for n in range(99)]}), scores, PART_ORDER)
    for written, column in ((images, "image"), (scores, "image_score")):
        assert len(_read(io.BytesIO(written.getvalue())))
        with pytest.raises(OSError, match="CRC checksum"):
            _read(_flipped(written.getvalue(), column))
