"""Fuzz: a good file beside one with any bytes changed, its footer's too, as jobs read a lake.

    python -m tests.fuzz.lake --seconds 600

Whatever the other file makes of Arrow, in the process that reads other people's files, every row of
the good one is read, and what is said of the other one names it.
"""

import io
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings, ImageSettings, Settings
from patchlake.pipeline.errors import FileDamaged, InputChanged, TableError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.storage.folder import Folder
from tests.fuzz.harness import main

GOOD, OTHER = "b.parquet", "a.parquet"
ROWS = 30


def _table(first: int) -> pa.Table:
    numbers = range(first, first + ROWS)
    return pa.table(
        {
            "image_id": [f"{number:04}" for number in numbers],
            "image": [bytes([number % 256]) * 40 for number in numbers],
            "group": ["tile" if number % ROWS < ROWS // 2 else "nut" for number in numbers],
            "split": pa.array(["train"] * ROWS).dictionary_encode(),
            "label": ["good", None] * (ROWS // 2),
            "line": pa.array(numbers, pa.int64()),
        }
    )


def _changed(chance: random.Random) -> bytes:
    sink = io.BytesIO()
    options = {
        "row_group_size": chance.choice((10, 100)),
        "use_dictionary": chance.random() < 0.5,
        "compression": chance.choice(("none", "snappy", "zstd")),
        "write_page_checksum": chance.random() < 0.5,
        "write_page_index": chance.random() < 0.3,
    }
    pq.write_table(_table(0), sink, **options)
    content = bytearray(sink.getvalue())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # The footer is the smaller part by far, and the one that says how long things are.
    begin = footer if chance.random() < 0.7 else 0
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(begin, len(content))
        content[place] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
    if chance.random() < 0.1:
        del content[chance.randrange(len(content)) :]
    if chance.random() < 0.05:
        content += chance.randbytes(chance.randint(1, 100))
    return bytes(content)


def case(chance: random.Random) -> None:
    """Plan and read the two files as a score and a fit do."""
    with TemporaryDirectory(prefix="fuzz-lake-") as root:
        pq.write_table(_table(1000), Path(root, GOOD), row_group_size=chance.choice((10, 100)))
        Path(root, OTHER).write_bytes(_changed(chance))
        try:
            _read(Folder.at(root))
        except TableError as error:
            # A file that is whole, and of another schema: the lake is refused by its name.
            _require_named(error)


def _require_named(error: Exception) -> None:
    if OTHER not in str(error):
        raise AssertionError(f"{error} does not name {OTHER}") from error


def _read(lake: Folder) -> None:
    columns = ColumnSettings()
    planned = plan(lake, Settings(fragment_images=20))
    assert set(planned.damaged) <= {OTHER}, planned.damaged
    assert all(OTHER in told for told in planned.damaged.values())
    fitting = Source(lake, columns, ImageSettings(), Geometry((8, 8), None))
    found: list[pa.Table] = []
    for fragment in planned.every:
        try:
            rows = fitting.read(fragment)
            fitting.read_names(fragment)
        except (FileDamaged, InputChanged, TableError) as error:
            _require_named(error)
            continue
        assert len(rows) == fragment.images
        if fragment.path == GOOD:
            found.append(rows)
    ids = [i for rows in found for i in rows.column("image_id").to_pylist()]
    images = {i for rows in found for i in rows.column("image").to_pylist()}
    assert sorted(ids) == _table(1000).column("image_id").to_pylist()
    assert images == set(_table(1000).column("image").to_pylist())


if __name__ == "__main__":
    main("tests.fuzz.lake", case)
