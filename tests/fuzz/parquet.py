"""Fuzz: Parquet files of odd schemas and with bytes flipped, planned and read as a lake.

A file is read, or refused by an error that a job answers for. A process that Arrow ends (a damaged
size statistic: `terminate called after throwing`) is a finding too, if the file was only odd; of
damaged ones the target keeps to the pages and to text, since the footer's own parser ends processes
(`reading.footers` asks it for as little as it can; jobs read footers in processes of their own).
"""

import io
import json
import random
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings, ImageSettings, Settings
from patchlake.pipeline.errors import InputChanged, PatchlakeError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.named import read_named
from patchlake.pipeline.reading.passing import extra_schema
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.storage.folder import Folder
from tests.fuzz.harness import main

# What a job answers for: a refusal, a file that fails, or a row.
ALLOWED = (PatchlakeError, InputChanged, OSError, pa.ArrowException)

Values = Callable[[random.Random, int], pa.Array]


def _of(kind: pa.DataType, make: Callable[[random.Random], object]) -> Values:
    def values(chance: random.Random, rows: int) -> pa.Array:
        nulls = chance.choice((0.0, 0.0, 0.3, 1.0))
        cells = [None if chance.random() < nulls else make(chance) for _ in range(rows)]
        return pa.array(cells, kind)

    return values


def _word(chance: random.Random) -> str:
    odd = ["", "good", "tile", "\0", "\u90e8" * 90, "x" * 5000, "..", "7", "NaN", "\u202e", "a=b/c"]
    return chance.choice(odd)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NESTED = pa.list_(pa.struct([("a", pa.list_(pa.int8()))]))
KINDS: list[Values] = [
    _of(pa.string(), _word),
    _of(pa.large_string(), _word),
    _of(pa.string_view(), _word),
    _of(pa.binary(), lambda c: c.randbytes(c.randint(0, 40))),
    _of(pa.binary(4), lambda c: c.randbytes(4)),
    _of(pa.int64(), lambda c: c.choice((0, -1, 7, 2**63 - 1, -(2**63)))),
    _of(pa.uint64(), lambda c: c.choice((0, 2**64 - 1))),
    _of(pa.int8(), lambda c: c.randint(-2, 3)),
    _of(pa.float64(), lambda c: c.choice((0.0, 1.0, 1.5, float("nan"), float("inf"), -0.0, 1e300))),
    _of(pa.float16(), lambda c: c.choice((0.0, 1.0, 0.5))),
    _of(pa.bool_(), lambda c: c.random() < 0.5),
    _of(pa.date32(), lambda c: date(c.randint(1, 9999), 1, 1)),
    _of(pa.timestamp("us", "UTC"), lambda c: c.randint(-(2**60), 2**60)),
    _of(pa.time64("us"), lambda c: c.randint(0, 10**9)),
    _of(pa.decimal128(20, 0), lambda c: Decimal(c.randint(-9, 9))),
    _of(pa.decimal128(20, 2), lambda c: Decimal(c.randint(-9, 9)) / 100),
    _of(pa.uuid(), lambda c: c.randbytes(16)),
    _of(pa.list_(pa.string()), lambda c: [_word(c)] * c.randint(0, 3)),
    _of(pa.map_(pa.string(), pa.int8()), lambda c: [(_word(c), 1)]),
    _of(STRUCT, lambda c: {"bytes": c.choice((b"1", None)), "path": _word(c)}),
    _of(NESTED, lambda _: [{"a": [1, None]}, None]),
    lambda _, rows: pa.nulls(rows),
    lambda c, rows: KINDS[0](c, rows).dictionary_encode(),
]
PLAIN: dict[str, Values] = {
    "image": KINDS[3],
    "mask": KINDS[3],
    # Groups without nulls, in runs.
    "group": lambda c, rows: pa.array(sorted(c.choices([_word(c), "x"], k=rows)), pa.string()),
}
NAMES = ("image_id", "image", "uri", "group", "split", "label", "mask", "line", "meta")
KEYS = (*NAMES, "g", "status", "version", "Label", "", "dt")


def _table(chance: random.Random, rows: int) -> pa.Table:
    names, columns = [], []
    for name in NAMES:
        if chance.random() < 0.1:
            continue
        plain = PLAIN.get(name, KINDS[0])
        kind = plain if chance.random() < 0.9 else chance.choice(KINDS)
        named = (
            name if chance.random() < 0.99 else chance.choice((name.title(), "group", "a.b", ""))
        )
        names.append(named)
        columns.append(kind(chance, rows))
    table = pa.Table.from_arrays(columns, names=names) if names else pa.table({})
    if chance.random() < 0.2:
        classes = chance.choice((["a", "b"], [1], "x", None, {"a": 1}))
        features = {"label": {"names": classes}, "group": {"names": ["a", "b"]}}
        info = chance.choice((json.dumps({"info": {"features": features}}), "[]", "{", "\xff"))
        table = table.replace_schema_metadata({"huggingface": info})
    return table


def _file(chance: random.Random) -> bytes:
    sink = io.BytesIO()
    rows = chance.choice((0, 1, 3, 70))
    options = {
        "row_group_size": chance.choice((1, 2, 100)),
        "write_statistics": chance.random() < 0.7,
        "use_dictionary": chance.random() < 0.5,
        "compression": chance.choice(("none", "snappy", "zstd")),
        "data_page_version": chance.choice(("1.0", "2.0")),
        "write_page_index": chance.random() < 0.3,
        "store_schema": chance.random() < 0.7,
    }
    pq.write_table(_table(chance, rows), sink, **options)
    content = bytearray(sink.getvalue())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if footer > 8 and chance.random() < 0.5:
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(4, footer)] = chance.randrange(256)
    if chance.random() < 0.05:
        del content[chance.randrange(len(content)) :]
    return bytes(content)


def _path(chance: random.Random, number: int) -> str:
    values = ("a", "7", "07", "true", "__HIVE_DEFAULT_PARTITION__", "%2F", "good", "", "%ff")
    keys = chance.choices(KEYS, k=chance.choice((0, 0, 0, 1, 3)))
    return "/".join([*(f"{key}={chance.choice(values)}" for key in keys), f"{number}.parquet"])


def case(chance: random.Random) -> None:
    """Plan and read a lake of two files, as every verb would."""
    with TemporaryDirectory(prefix="fuzz-parquet-") as root:
        files = []
        for number in range(chance.choice((1, 2))):
            try:
                files.append((_path(chance, number), _file(chance)))
            except pa.ArrowException:
                # Not a file that anybody can write.
                return
        for path, content in files:
            file = Path(root) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        columns = ColumnSettings(
            extra=chance.choice(((), ("line",), ("meta", "dt"))),
            one_group=chance.choice((*[None] * 9, "x")),
        )
        try:
            _read(Folder.at(root), columns)
        except ALLOWED:
            return


def _read(lake: Folder, columns: ColumnSettings) -> None:
    fragments = plan(lake, Settings(columns=columns, fragment_images=50)).every
    extra = extra_schema(lake, fragments, columns)
    scoring = Source(
        *(lake, columns, ImageSettings(), Geometry((8, 8), None)), labelled=False, extra=extra
    )
    fitting = Source(lake, columns, ImageSettings(), Geometry((8, 8), None))
    read = 0
    for fragment in fragments:
        rows = scoring.read(fragment)
        assert len(rows) == fragment.images
        assert rows.column("image_id").null_count == 0
        assert set(rows.column("group").to_pylist()) == {fragment.group}
        read += len(rows)
        assert fitting.read_names(fragment).column("image_id") == rows.column("image_id")
        assert len(fitting.read(fragment, mask=True)) == fragment.images
        read_named(lake, columns, fragment.path, fragment.version, ("group", "label", "sha256"))
    assert read == fragments.images


if __name__ == "__main__":
    main("tests.fuzz.parquet", case)
