"""Which files IMAGES is made of."""

import base64
import datetime as dt
import json
import string
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reading.listing import list_tables, open_lake
from patchlake.pipeline.storage.folder import Folder

STORAGE = StorageSettings()
ROWS = pa.table({"image_id": ["a", "b", "c"], "dt": ["1", "2", None], "n": [1, None, 3]})


def listed(root: Path | str) -> list[str]:
    return [entry.name for entry in list_tables(open_lake(str(root), STORAGE))]


def ids(root: Path, names: list[str]) -> list[str]:
    tables = [pq.ParquetFile(root / name).read(columns=["image_id"]) for name in names]
    return sorted(name for table in tables for name in table.column("image_id").to_pylist())


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET", "x.Parquet", "d=1/a.parq", "a.b.PQ"])
def test_parquet_by_any_of_its_names(tmp_path, name):
    Folder.at(str(tmp_path)).write(name, b"")
    for other in ("a.csv", "parquet", "a.parquet.crc", "_x/a.parquet", ".a.parquet", ".h/a.pq"):
        Folder.at(str(tmp_path)).write(other, b"")
    assert listed(tmp_path) == [name]


def test_files_of_other_names_are_told_of_once(tmp_path, caplog):
    folder = Folder.at(str(tmp_path))
    for name in ("a.parquet", "b.csv", "sub/c.txt", "_SUCCESS"):
        folder.write(name, b"")
    with caplog.at_level("INFO", logger="patchlake"):
        listed(tmp_path)
        listed(tmp_path)
    [told] = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert "2 files" in told
    assert "b.csv" in told


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("", "holds no file named .*, only 1 others, the first is a.txt; run `patchlake ingest`"),
        ("a.txt", "is no folder, and not named .*; rename it, if it is Parquet"),
        ("missing", "does not exist"),
    ],
)
def test_a_lake_of_none_is_refused(tmp_path, images, told):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=told):
        listed(tmp_path / images)


def test_one_file_is_its_folder_of_which_only_it_is_looked_at(tmp_path):
    for name in ("a.PARQUET", "b.parquet", "sub/a.parquet"):
        Folder.at(str(tmp_path)).write(name, b"")
    lake = open_lake(str(tmp_path / "a.PARQUET"), STORAGE)
    assert lake.root == str(tmp_path)
    assert [entry.name for entry in list_tables(lake)] == ["a.PARQUET"]


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path):
    Folder.at(str(tmp_path)).write("table.parquet/part-0.parquet", b"")
    assert listed(tmp_path / "table.parquet") == ["part-0.parquet"]


# --- Delta


def test_live_files_of_a_delta_table(tmp_path):
    root = str(tmp_path)
    write_deltalake(root, ROWS)
    write_deltalake(root, ROWS.slice(0, 1), mode="append")
    assert ids(tmp_path, listed(root)) == ["a", "a", "b", "c"]
    DeltaTable(root).delete("image_id = 'b'")
    assert ids(tmp_path, listed(root)) == ["a", "a", "c"]
    DeltaTable(root).optimize.compact()
    assert len(listed(root)) == 1
    assert ids(tmp_path, listed(root)) == ["a", "a", "c"]
    write_deltalake(root, ROWS.slice(2), mode="overwrite")
    DeltaTable(root).create_checkpoint()
    assert ids(tmp_path, listed(root)) == ["c"]
    assert len(list(tmp_path.glob("*.parquet"))) > 2


def test_partitions_of_a_delta_table_are_those_of_its_folders(tmp_path):
    odd = ["a b", "ü/%", "=", None]
    rows = pa.table(
        {
            "image_id": [str(n) for n in range(4)],
            "dt": odd,
            "day": [dt.date(2026, 1, 1), None, dt.date(2026, 1, 2), dt.date(2026, 1, 2)],
            "ok": [True, False, None, True],
        }
    )
    write_deltalake(str(tmp_path), rows, partition_by=["dt", "day", "ok"])
    assert ids(tmp_path, listed(tmp_path)) == ["0", "1", "2", "3"]


def test_delta_tables_below_images(tmp_path):
    for name in ("x", "deep/y"):
        write_deltalake(str(tmp_path / name), ROWS)
        write_deltalake(str(tmp_path / name), ROWS.slice(1), mode="overwrite")
    Folder.at(str(tmp_path)).write("plain/a.parquet", b"")
    found = listed(tmp_path)
    assert "plain/a.parquet" in found
    assert ids(tmp_path, [n for n in found if n != "plain/a.parquet"]) == ["b", "b", "c", "c"]


@pytest.mark.parametrize("partitioned", [True, False])
def test_a_part_of_a_delta_table_is_not_a_lake(tmp_path, partitioned):
    write_deltalake(str(tmp_path), ROWS, partition_by=["dt"] if partitioned else None)
    [name, *_] = listed(tmp_path)
    inside = tmp_path / name
    write_deltalake(str(tmp_path), ROWS.slice(1), mode="overwrite")
    with pytest.raises(TableError, match=rf"lies in the Delta table {tmp_path}|name the table"):
        listed(inside.parent if partitioned else inside)


def _actions(root: Path, *actions: dict[str, object]) -> None:
    number = len(list((root / "_delta_log").glob("*.json")))
    text = "\n".join(map(json.dumps, actions))
    (root / "_delta_log" / f"{number:020}.json").write_text(text)


def _first_row_deleted() -> dict[str, object]:
    """Return a deletion vector within the log: the protocol's magic, then Roaring's own format."""
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 0)
    content = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    rfc, z85 = (f"{string.digits}{letters}" for letters in (_RFC_1924, _Z85))
    text = base64.b85encode(content, pad=True).decode().translate(str.maketrans(rfc, z85))
    return {
        "storageType": "i",
        "pathOrInlineDv": text,
        "sizeInBytes": len(content),
        "cardinality": 1,
    }


_RFC_1924 = string.ascii_uppercase + string.ascii_lowercase + "!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = string.ascii_lowercase + string.ascii_uppercase + ".-:+=^!/*?&<>()[]{}@%$#"


def _protocol(reader: int, *features: str) -> dict[str, object]:
    named = {"readerFeatures": list(features), "writerFeatures": list(features)}
    written = {"minReaderVersion": reader, "minWriterVersion": 7 if features else 5}
    return {"protocol": written | (named if features else {})}


def test_what_a_delta_table_needs_and_we_do_not_do_is_named(tmp_path):
    for name in ("vectors", "mapping", "unknown", "broken", "gone"):
        write_deltalake(str(tmp_path / name), ROWS)
    [file] = (tmp_path / "vectors").glob("*.parquet")
    add = {
        "path": file.name,
        "partitionValues": {},
        "size": file.stat().st_size,
        "modificationTime": 0,
        "dataChange": True,
        "stats": '{"numRecords":3}',
        "deletionVector": _first_row_deleted(),
    }
    remove = {"path": file.name, "deletionTimestamp": 1, "dataChange": True}
    _actions(tmp_path / "vectors", _protocol(3, "deletionVectors"), {"remove": remove})
    _actions(tmp_path / "vectors", {"add": add})
    schema = DeltaTable(tmp_path / "mapping").schema().to_json()
    meta = {
        "id": "x",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema,
        "partitionColumns": [],
        "configuration": {"delta.columnMapping.mode": "name"},
    }
    _actions(tmp_path / "mapping", _protocol(2), {"metaData": meta})
    _actions(tmp_path / "unknown", _protocol(3, "variantType"))
    (tmp_path / "broken/_delta_log/00000000000000000000.json").write_text("{")
    for gone in (tmp_path / "gone").glob("*.parquet"):
        gone.unlink()
    (tmp_path / "gone/other.parquet").touch()
    told = {
        "vectors": "1 files .* deletion vectors",
        "mapping": "olumnMapping|column mapping",
        "unknown": "variantType",
        "broken": "log of the Delta table .* cannot be read",
        "gone": "is no Parquet file there",
    }
    for name, words in told.items():
        with pytest.raises(TableError, match=rf"(?s)(?=.*{tmp_path / name}).*({words})"):
            listed(tmp_path / name)


# --- Iceberg


@pytest.fixture
def catalog(tmp_path):
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/w")
    catalog.create_namespace("n")
    yield catalog
    catalog.engine.dispose()


def test_live_files_of_an_iceberg_table(catalog, tmp_path):
    table = catalog.create_table("n.t", schema=ROWS.schema)
    root = tmp_path / "w/n/t"
    table.append(ROWS)
    table.append(ROWS.slice(0, 1))
    assert ids(root, listed(root)) == ["a", "a", "b", "c"]
    table.delete(EqualTo("image_id", "b"))
    assert ids(root, listed(root)) == ["a", "a", "c"]
    table.overwrite(ROWS.slice(2))
    assert ids(root, listed(root)) == ["c"]
    with pytest.raises(TableError, match=rf"lies in the Iceberg table {root}"):
        listed(root / "data")
    with table.update_schema() as update:
        update.rename_column("n", "number")
    with pytest.raises(TableError, match=r"column 'number' of the Iceberg table was renamed"):
        listed(root)


def test_an_iceberg_table_that_cannot_be_told_is_refused(catalog, tmp_path):
    table = catalog.create_table("n.t", schema=ROWS.schema)
    table.append(ROWS)
    root = tmp_path / "w/n/t"
    moved = tmp_path / "moved"
    root.rename(moved)
    with pytest.raises(TableError, match=r"moved: .*says that it lies at"):
        listed(moved)
    newest = max((moved / "metadata").glob("*.metadata.json"))
    other = newest.with_name(newest.name.replace("-", "-0", 1))
    other.write_bytes(newest.read_bytes())
    with pytest.raises(TableError, match=r"2 newest metadata files"):
        listed(moved)
    other.unlink()
    newest.write_text('{"format-version": 2}')
    with pytest.raises(TableError, match=r"metadata of the Iceberg table .* cannot be read"):
        listed(moved)


# --- others


@pytest.mark.parametrize(
    ("mark", "kind"), [(".hoodie/hoodie.properties", "Hudi"), ("_versions/1.manifest", "Lance")]
)
@pytest.mark.parametrize("below", ["", "sub/"])
def test_other_formats_are_refused(tmp_path, mark, kind, below):
    folder = Folder.at(str(tmp_path))
    folder.write(f"{below}{mark}", b"")
    folder.write(f"{below}a=1/b.parquet", b"")
    for root in (tmp_path, tmp_path / below / "a=1"):
        with pytest.raises(TableError, match=rf"{kind} table"):
            listed(root)


def test_a_table_in_an_object_store_is_refused():
    folder = Folder.at("memory://delta")
    folder.write("_delta_log/0.json", b"")
    folder.write("a.parquet", b"")
    with pytest.raises(TableError, match="Delta table, which is read on a disk only"):
        list_tables(folder)
    with pytest.raises(TableError, match=r"lies in the Delta table memory:///delta"):
        list_tables(Folder.at("memory://delta/dt=1"))
