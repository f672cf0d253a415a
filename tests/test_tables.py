"""Columns of other people's tables: every fault at once, and equal types under other names."""

import pyarrow as pa
import pytest

from pipeline.errors import TableError
from pipeline.tables import IMAGES, SCORES, require_columns

TEXT = IMAGES.field("label")
BYTES = IMAGES.field("image")
TIME = IMAGES.field("captured_at")
GROUP = IMAGES.field("group")


def test_every_fault_is_told_at_once_with_what_to_do():
    schema = pa.schema([("serial", pa.int64()), ("jpeg", pa.string()), ("line", pa.string())])
    wanted = {
        "serial": IMAGES.field("image_id"),
        "jpeg": BYTES,
        "station": IMAGES.field("group"),
        "line": TEXT,
    }
    with pytest.raises(TableError) as raised:
        require_columns(schema, wanted, "lake/a.parquet")
    assert str(raised.value) == (
        "lake/a.parquet: column 'serial' is int64, image_id needs string; "
        "column 'jpeg' is string, image needs binary; "
        "column 'station' (group) is missing; the file has: serial, jpeg, line. "
        "Map it with --set columns.group=NAME"
    )


@pytest.mark.parametrize(
    ("found", "field"),
    [
        (pa.string(), TEXT),
        (pa.large_string(), TEXT),
        (pa.string_view(), TEXT),
        (pa.dictionary(pa.int32(), pa.string()), TEXT),
        (pa.dictionary(pa.uint8(), pa.large_string()), GROUP),
        (pa.binary(), BYTES),
        (pa.large_binary(), BYTES),
        (pa.binary_view(), BYTES),
        (pa.dictionary(pa.int8(), pa.binary()), BYTES),
        (pa.timestamp("ns"), TIME),
        (pa.int32(), SCORES.field("width")),
        # What pandas writes for a column of None.
        (pa.null(), TEXT),
        (pa.null(), BYTES),
    ],
    ids=str,
)
def test_other_forms_of_a_type_are_accepted(found, field):
    schema = pa.schema([("column", found)])
    # It raises where a column is refused.
    assert require_columns(schema, {"column": field}, "a.parquet") is None


@pytest.mark.parametrize(
    ("found", "field"),
    [
        (pa.binary(), TEXT),
        (pa.int64(), TEXT),
        (pa.list_(pa.string()), TEXT),
        (pa.dictionary(pa.int32(), pa.int64()), TEXT),
        (pa.dictionary(pa.int32(), pa.binary()), TEXT),
        (pa.string(), BYTES),
        (pa.list_(pa.uint8()), BYTES),
        (pa.struct([("bytes", pa.binary())]), BYTES),
        (pa.date32(), TIME),
        (pa.string(), TIME),
        (pa.int64(), SCORES.field("width")),
        (pa.null(), GROUP),
    ],
    ids=str,
)
def test_other_types_are_refused_by_name(found, field):
    with pytest.raises(TableError, match=f"^a.parquet: column 'column' is .*{field.name} needs"):
        require_columns(pa.schema([("column", found)]), {"column": field}, "a.parquet")
