"""Columns of other people's tables: every fault at once, and equal types under other names."""

import pyarrow as pa
import pytest

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.tables import IMAGES, SCORES, require_columns

TEXT = IMAGES.field("label")
BYTES = IMAGES.field("image")
TIME = IMAGES.field("captured_at")
GROUP = IMAGES.field("group")


def test_every_fault_is_told_at_once_with_what_to_do():
    schema = pa.schema([("serial", pa.list_(pa.int8())), ("jpeg", pa.string())])
    wanted = {
        "serial": IMAGES.field("image_id"),
        "jpeg": BYTES,
        "station": IMAGES.field("group"),
    }
    with pytest.raises(TableError) as raised:
        require_columns(schema, wanted, "lake/a.parquet")
    assert str(raised.value) == (
        "lake/a.parquet: column 'serial' is list<item: int8>, image_id needs string. "
        "Map another with --set columns.image_id=NAME; "
        "column 'jpeg' is string, image needs binary. "
        "Map another with --set columns.image=NAME; "
        "column 'station' (group) is missing; the file has: serial, jpeg. "
        "Map it with --set columns.group=NAME"
    )


@pytest.mark.parametrize(
    ("found", "field"),
    [
        *((kind, TEXT) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        (pa.dictionary(pa.int32(), pa.string()), TEXT),
        (pa.dictionary(pa.uint8(), pa.large_string()), GROUP),
        # One spelling each: see lake.values.
        *((kind, GROUP) for kind in (pa.int8(), pa.uint64(), pa.bool_(), pa.float64())),
        *((kind, TEXT) for kind in (pa.date32(), pa.decimal128(9, 0), pa.uuid(), pa.binary())),
        (pa.dictionary(pa.int32(), pa.int64()), TEXT),
        *((kind, BYTES) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
        (pa.dictionary(pa.int8(), pa.binary()), BYTES),
        (pa.timestamp("ns"), TIME),
        (pa.int32(), SCORES.field("width")),
        # What pandas writes for a column of None.
        *((pa.null(), field) for field in (TEXT, BYTES, GROUP, IMAGES.field("uri"))),
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
        *((kind, TEXT) for kind in (pa.list_(pa.string()), pa.timestamp("us"), pa.time32("s"))),
        *((kind, TEXT) for kind in (pa.decimal128(9, 2), pa.binary(4), pa.struct([]))),
        (pa.dictionary(pa.int32(), pa.timestamp("us")), TEXT),
        *((kind, IMAGES.field("uri")) for kind in (pa.int64(), pa.binary())),
        *((kind, BYTES) for kind in (pa.string(), pa.list_(pa.uint8()), pa.int64())),
        (pa.struct([("bytes", pa.binary())]), BYTES),
        *((kind, TIME) for kind in (pa.date32(), pa.string())),
        (pa.int64(), SCORES.field("width")),
    ],
    ids=str,
)
def test_other_types_are_refused_by_name(found, field):
    said = f"^a.parquet: column 'column' is .*{field.name} needs .*--set columns.{field.name}=NAME"
    with pytest.raises(TableError, match=said):
        require_columns(pa.schema([("column", found)]), {"column": field}, "a.parquet")
