"""Other people's lakes: keys of paths as columns, schemas that change, and what writers make."""

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import ClassVar

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import ColumnSettings, ImageSettings, Settings
from patchlake.pipeline.errors import ConfigError, FileDamaged, InputChanged, TableError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.reading.named import read_named
from patchlake.pipeline.reading.passing import extra_schema
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.where.condition import parse_where

GEOMETRY = Geometry((64, 64), None)
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(root: Path, path: str, **columns: object) -> None:
    """Write rows with an image each; a column of None is left out."""
    rows = max([len(values) for values in columns.values() if values is not None], default=1)
    held = {
        "image_id": [f"{path}#{number}" for number in range(rows)],
        "image": [b"jpeg"] * rows,
        "group": ["x"] * rows,
    } | columns
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({n: v for n, v in held.items() if v is not None}), root / path)


def read(root: Path, *, mask: bool = False, **columns: object) -> list[dict[str, object]]:
    """Return the rows of a lake as a fit sees them (an evaluation, with masks)."""
    lake, settings = Folder.at(str(root)), Settings(columns=ColumnSettings(**columns))
    source = Source(lake, settings.columns, ImageSettings(), GEOMETRY)
    fragments = plan(lake, settings).every
    return [row for one in fragments for row in source.read(one, mask=mask).to_pylist()]


def scored(root: Path, **columns: object) -> list[dict[str, object]]:
    """Return the rows of a lake as a score sees them."""
    lake, settings = Folder.at(str(root)), Settings(columns=ColumnSettings(**columns))
    fragments = plan(lake, settings).every
    extra = extra_schema(lake, fragments, settings.columns)
    source = Source(lake, settings.columns, ImageSettings(), GEOMETRY, labelled=False, extra=extra)
    tables = [source.read(one) for one in fragments]
    assert len({str(table.schema) for table in tables}) == 1
    return [row for table in tables for row in table.to_pylist()]


FRAME = pd.DataFrame(
    {
        "image_id": ["a", "b", "c"],
        "image": [b"1", b"2", b"3"],
        "group": ["x", "x", "x"],
        "label": ["good", "h\u00f6le/1", None],
    }
)


def _by_pandas(frame: pd.DataFrame, root: Path, key: str) -> None:
    frame.to_parquet(root, partition_cols=[key])


def _by_pyarrow(frame: pd.DataFrame, root: Path, key: str) -> None:
    table = pa.Table.from_pandas(frame)
    partitioning = ds.partitioning(pa.schema([table.schema.field(key)]), flavor="hive")
    ds.write_dataset(table, root, format="parquet", partitioning=partitioning)


def _by_duckdb(frame: pd.DataFrame, root: Path, key: str) -> None:
    duckdb.connect().register("frame", frame).sql(
        f"COPY (SELECT * FROM frame) TO '{root}' (FORMAT parquet, PARTITION_BY (\"{key}\"))"
    )


def _by_polars(frame: pd.DataFrame, root: Path, key: str) -> None:
    pl.from_pandas(frame).write_parquet(pl.PartitionBy(root, key=key, include_key=False))


WRITERS = {f.__name__[4:]: f for f in (_by_pandas, _by_pyarrow, _by_duckdb, _by_polars)}
Writer = Callable[[pd.DataFrame, Path, str], None]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_partition_is_the_column_whoever_wrote_it(tmp_path: Path, writer: str):
    # pandas drops rows whose key is null.
    frame = FRAME.dropna() if writer == "pandas" else FRAME
    WRITERS[writer](frame, tmp_path / "lake", "label")
    rows = sorted(read(tmp_path / "lake"), key=lambda row: str(row["image_id"]))
    found = [None if pd.isna(label) else label for label in frame["label"]]
    assert [row["label"] for row in rows] == found
    assert [row["image"] for row in rows] == list(frame["image"])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["int64", "bool", "str"])
def test_groups_of_typed_keys_are_their_text(tmp_path: Path, writer: str, kind: str):
    values = {"int64": [7, 8, 7], "bool": [True, False, True], "str": ["007", "8", "007"]}[kind]
    frame = FRAME.drop(columns="label").assign(group=values)
    WRITERS[writer](frame, tmp_path / "lake", "group")
    groups = {str(row["group"]) for row in read(tmp_path / "lake")}
    assert {group.lower() for group in groups} == {str(value).lower() for value in values}


def test_groups_of_a_writer_in_latin_1_stay_apart(tmp_path: Path):
    for key in ("%E9", "%E8"):
        write(tmp_path, f"group={key}/a.parquet", group=None)
    assert {str(row["group"]) for row in read(tmp_path)} == {"%E9", "%E8"}


def test_every_column_of_ours_may_come_from_the_path(tmp_path: Path):
    keys = "station=A%2F1/split=test/label=hole/serial=7/line=L1"
    write(tmp_path, f"{keys}/a.parquet", group=None, image_id=None, image=[b"1", b"2"])
    names = {"image_id": "serial", "group": "station"}
    expected = {"image_id": "7", "group": "A/1", "split": "test", "label": "hole", "uri": None}
    assert [row.items() >= expected.items() for row in read(tmp_path, **names)] == [True] * 2
    assert [row["extra:line"] for row in scored(tmp_path, **names, extra=("line",))] == ["L1"] * 2
    table = read_named(
        *(Folder.at(str(tmp_path)), ColumnSettings(**names), f"{keys}/a.parquet", ""),
        ("label", "group", "sha256"),
    )
    assert table.to_pylist() == [{"label": "hole", "group": "A/1", "sha256": None}] * 2


def test_a_uri_may_come_from_the_path(tmp_path: Path):
    write(tmp_path, "uri=%2Fpictures%2F1.png/a.parquet", image=None)
    assert [row["uri"] for row in read(tmp_path)] == ["/pictures/1.png"]


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("label=good", ["good", "good"]),
        ("label=07", pa.array([7, 7], pa.int16())),
        ("label=7.0", [7.0, 7.0]),
        ("label=True", [True, True]),
        ("label=2026-11-22", [date(2026, 11, 22)] * 2),
        ("label=good", pa.array(["good", "good"]).dictionary_encode()),
        ("label=__HIVE_DEFAULT_PARTITION__", pa.array([None, None], pa.string())),
        ("label=__HIVE_DEFAULT_PARTITION__", pa.nulls(2)),
        # pandas writes an empty column without a type: it says nothing.
        ("label=good", pa.nulls(2)),
        ("label=good", pa.array([], pa.string())),
    ],
)
def test_a_path_and_a_column_that_agree_are_read(tmp_path: Path, key: str, column: Sequence):
    rows = len(column)
    write(tmp_path, f"{key}/a.parquet", label=column, group=["x"] * rows, image=[b"1"] * rows)
    assert len(read(tmp_path)) == rows


@pytest.mark.parametrize(
    ("key", "column", "said"),
    [
        ("label=good", ["good", "hole"], "label='good', column 'label' says 'good', 'hole'"),
        ("label=07", ["7", "7"], "label='07', column 'label' says '7'"),
        ("label=8", [7, 7], "label='8', column 'label' says '7'"),
        ("label=x", [7, 7], "label='x', column 'label' says '7'"),
        ("label=good", pa.array([None, None], pa.string()), "label='good', .* says null"),
        ("label=__HIVE_DEFAULT_PARTITION__", ["good", None], "label=null, column 'label' says"),
    ],
)
def test_a_path_and_a_column_that_disagree_stop_the_job(
    tmp_path: Path, key: str, column: Sequence, said: str
):
    write(tmp_path, f"{key}/a.parquet", label=column, group=["x", "x"])
    with pytest.raises(TableError, match=f"/a.parquet: the folder says .*{said}"):
        read(tmp_path)
    lake = Folder.at(str(tmp_path))
    with pytest.raises(TableError, match="move the file or mend the column"):
        read_named(lake, ColumnSettings(), f"{key}/a.parquet", "", ("group", "label"))
    # Who scores needs no label.
    assert len(scored(tmp_path)) == 2


@pytest.mark.parametrize("name", ["group", "line"])
def test_a_path_that_disagrees_about_what_a_score_reads_stops_it(tmp_path: Path, name: str):
    write(tmp_path, f"{name}=a/a.parquet", group=["x"], line=["b"])
    with pytest.raises(TableError, match=f"the folder says {name}='a', column '{name}' says"):
        scored(tmp_path, extra=("line",))


def test_a_key_that_is_there_twice_must_say_one_thing(tmp_path: Path):
    write(tmp_path, "split=train/split=test/a.parquet")
    with pytest.raises(TableError, match=r"the path says 'split' twice: \['test', 'train'\]"):
        read(tmp_path)
    assert len(scored(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "settings"), [("Label", {}), (" split", {}), ("Status", {"label": "status"})]
)
def test_a_name_that_nearly_matches_is_not_passed_over(tmp_path: Path, name: str, settings: dict):
    ours = (settings and "label") or name.strip().lower()
    write(tmp_path, "a.parquet", **{name: ["good"]})
    with pytest.raises(TableError, match=rf"has '{name}' and no .* --set columns.{ours}='{name}'"):
        read(tmp_path, **settings)
    assert len(read(tmp_path, **settings | {ours: name})) == 1
    assert len(read(tmp_path, **settings | {ours: "none"})) == 1
    assert len(scored(tmp_path, **settings)) == 1


# Two files each: the column of one, and of the other.
CHANGES: dict[str, tuple[object, object]] = {
    "added later": (None, ["good"]),
    "all null": (pa.nulls(1), ["good"]),
    "wider": (pa.array([1], pa.int8()), pa.array([300], pa.int64())),
    "number, then text": ([1], ["L1"]),
    "floats with null": ([1], [None, 2.0]),
    "other forms": (
        pa.array(["a"]).cast(pa.large_string()),
        pa.array(["b"]).dictionary_encode(),
    ),
    "empty": (pa.array([], pa.null()), [True, None]),
}
MEANT = {
    "added later": [None, "good"],
    "all null": [None, "good"],
    "wider": ["1", "300"],
    "number, then text": ["1", "L1"],
    "floats with null": ["1", None, "2"],
    "other forms": ["a", "b"],
    "empty": ["true", None],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["split", "label"])
def test_a_column_that_changes_between_files_is_one_column(tmp_path: Path, change: str, name: str):
    for file, column in zip("ab", CHANGES[change], strict=True):
        rows = 1 if column is None else len(column)
        ids = pa.array([file] * rows, pa.string())
        others = {"image_id": ids, "group": pa.array(["x"] * rows, pa.string())}
        write(tmp_path, f"{file}.parquet", **others, image=[b"1"] * rows, **{name: column})
    assert [row[name] for row in read(tmp_path)] == MEANT[change]


def test_an_empty_file_of_pandas_has_null_types_and_no_rows(tmp_path: Path):
    FRAME.drop(columns="label").to_parquet(tmp_path / "a.parquet", index=False)
    pd.DataFrame({"image_id": [], "image": [], "group": []}, dtype=object).to_parquet(
        tmp_path / "b.parquet"
    )
    pd.DataFrame().to_parquet(tmp_path / "c.parquet")
    pq.write_table(
        pa.table({"image": pa.nulls(0), "group": pa.array([], pa.int64())}), tmp_path / "d.parquet"
    )
    assert len(read(tmp_path)) == len(scored(tmp_path)) == 3


def test_images_and_uris_may_take_turns(tmp_path: Path):
    write(tmp_path, "a.parquet", image=[b"1"], uri=pa.nulls(1))
    write(tmp_path, "b.parquet", image=None, uri=["/b.png"])
    write(tmp_path, "c.parquet", image=pa.nulls(1), uri=["/c.png"])
    found = [(row["image"], row["uri"]) for row in scored(tmp_path)]
    assert found == [(b"1", None), (None, "/b.png"), (None, "/c.png")]


@pytest.mark.parametrize("value", [1.5, float("inf"), b"\xff"])
def test_what_has_no_one_spelling_is_refused_with_the_value(tmp_path: Path, value: object):
    write(tmp_path, "a.parquet", group=[value])
    with pytest.raises(TableError, match=r"column 'group' has .*--set columns.group=NAME"):
        read(tmp_path)
    write(tmp_path, "a.parquet", group=["x"], label=[value])
    with pytest.raises(TableError, match=r"column 'label' has .*--set columns.label=NAME"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("column", "groups"),
    [
        (pa.array([7, 7, 8], pa.uint8()), ["7", "7", "8"]),
        (pa.array([2**63, 2**63, 2**63], pa.uint64()), [str(2**63)] * 3),
        (pa.array([True, False, True]), ["false", "true", "true"]),
        (pa.array([date(2026, 11, 22)] * 3), ["2026-11-22"] * 3),
        (pa.array([b"tile"] * 3), ["tile"] * 3),
        (pa.array([7, 7, 8], pa.int8()).dictionary_encode(), ["7", "7", "8"]),
        (pa.array([""] * 3), [""] * 3),
    ],
    ids=str,
)
def test_groups_and_ids_of_other_types_are_their_text(tmp_path: Path, column: pa.Array, groups):
    write(tmp_path, "a.parquet", group=column, image_id=column)
    rows = read(tmp_path)
    assert sorted(str(row["group"]) for row in rows) == groups
    assert sorted(str(row["image_id"]) for row in rows) == groups


def test_a_column_that_a_verb_does_not_need_never_stops_it(tmp_path: Path):
    odd = pa.array([[{"a": 1}]])
    for name in ("split", "label", "mask"):
        write(tmp_path, "a.parquet", **{name: odd})
        assert len(scored(tmp_path)) == 1
        with pytest.raises(TableError, match=rf"column '{name}' is list.*columns.{name}=NAME"):
            read(tmp_path, mask=True)
    assert len(read(tmp_path)) == 1
    write(tmp_path, "a.parquet", mask=["m.png"])
    with pytest.raises(TableError, match=r"'mask' is string, mask needs binary.*columns.mask="):
        read(tmp_path, mask=True)
    write(tmp_path, "a.parquet", uri=odd)
    assert [row["uri"] for row in read(tmp_path)] == [None]


class TestHuggingFace:
    """A data set as `datasets` writes it: struct image, integer label, no id and no group."""

    FEATURES: ClassVar = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}

    def _write(self, root: Path, labels: Sequence[int | None], **columns: object) -> None:
        images = [{"bytes": b"1", "path": "a.png"}, {"bytes": None, "path": "/b.png"}, None]
        held = {"image": pa.array(images, HF), "label": pa.array(labels, pa.int64())} | columns
        info = json.dumps({"info": {"features": self.FEATURES}})
        table = pa.table(held).replace_schema_metadata({"huggingface": info})
        pq.write_table(table, root / "a.parquet")

    def test_it_is_read_with_a_group(self, tmp_path: Path):
        self._write(tmp_path, [1, 0, -1])
        with pytest.raises(TableError, match=r"'group' \(group\) is missing.*or say --group NAME"):
            read(tmp_path)
        rows = read(tmp_path, one_group="tile")
        assert [row["image_id"] for row in rows] == ["a.png", "/b.png", "a.parquet:2"]
        assert [row["image"] for row in rows] == [b"1", None, None]
        assert [row["uri"] for row in rows] == [None, "/b.png", None]
        assert [row["label"] for row in rows] == ["good", "bad", None]
        assert {row["group"] for row in rows} == {"tile"}

    def test_a_class_that_has_no_name_is_refused(self, tmp_path: Path):
        self._write(tmp_path, [1, 2, 0])
        with pytest.raises(TableError, match="'label' has 2, which is no class: the file names 2"):
            read(tmp_path, one_group="tile")

    def test_its_own_columns_come_first(self, tmp_path: Path):
        ids, uris = ["1", None, "3"], ["u", None, None]
        self._write(tmp_path, [1, 1, 1], image_id=ids, uri=uris, group=["y"] * 3)
        rows = read(tmp_path)
        assert [row["image_id"] for row in rows] == ["1", "a.parquet:1", "3"]
        assert [row["uri"] for row in rows] == uris


def test_one_group_is_for_tables_without_groups(tmp_path: Path):
    write(tmp_path, "a.parquet", group=["x", None])
    with pytest.raises(TableError, match=r"null in 1 of 2 rows of row group 0.*--group NAME"):
        read(tmp_path)
    assert [row["group"] for row in read(tmp_path, one_group="x")] == ["x", "x"]
    with pytest.raises(TableError, match=r"says group 'x', --group \(columns.one_group\) says 'y'"):
        read(tmp_path, one_group="y")
    write(tmp_path, "a.parquet", group=None)
    write(tmp_path, "group=__HIVE_DEFAULT_PARTITION__/b.parquet", group=None)
    assert [row["group"] for row in read(tmp_path, one_group="y")] == ["y", "y"]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ([1], None, [1, None]),
        (pa.array([1], pa.int8()), [2**40], [1, 2**40]),
        ([1], ["L2"], ["1", "L2"]),
        ([1], [0.5], [1.0, 0.5]),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()), ["a", "b"]),
        (pa.nulls(1), ["b"], [None, "b"]),
        (pa.nulls(1), None, [None, None]),
        ([{"a": 1}], [{"b": "x"}], [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
    ],
)
def test_what_is_passed_through_has_one_type(tmp_path: Path, first, second, found):
    write(tmp_path, "a.parquet", line=first)
    write(tmp_path, "b.parquet", line=second)
    assert [row["extra:line"] for row in scored(tmp_path, extra=("line",))] == found


def test_what_no_file_has_and_what_has_no_type_is_refused(tmp_path: Path):
    write(tmp_path, "a.parquet", line=[1])
    write(tmp_path, "b.parquet", line=[[1]])
    with pytest.raises(
        TableError, match=r"names 'nil', no file of .* has it; a.parquet has: .*line"
    ):
        scored(tmp_path, extra=("nil",))
    with pytest.raises(TableError, match=r"'line' of .* is of types int64, list"):
        scored(tmp_path, extra=("line",))


@pytest.mark.parametrize("name", ["group", "Status", "version", "image_score", "line"])
def test_a_column_of_ours_is_not_passed_through(tmp_path: Path, name: str):
    write(tmp_path, "a.parquet", line=[1])
    with pytest.raises(ConfigError, match=f"columns.extra names '{name}'"):
        scored(tmp_path, extra=("line", name))


def test_where_prunes_by_the_mapped_group_and_not_by_a_key_of_that_name(tmp_path: Path):
    write(tmp_path, "group=a/a.parquet", group=None, station=["b"])
    lake = Folder.at(str(tmp_path))
    settings = Settings(columns=ColumnSettings(group="station"))
    assert len(plan(lake, settings, where=parse_where("group = 'b'")).kept) == 1
    assert len(plan(lake, settings, where=parse_where("station = 'b'")).kept) == 1


def test_a_table_without_any_column_we_need_but_images(tmp_path: Path):
    write(tmp_path, "group=x/a.parquet", group=None, image_id=None)
    lake = Folder.at(str(tmp_path))
    source = Source(lake, ColumnSettings(), ImageSettings(), GEOMETRY)
    [fragment] = plan(lake, Settings()).every
    expected = {"image_id": "group=x/a.parquet:0", "group": "x", "split": None, "label": None}
    assert source.read_names(fragment).to_pylist() == [expected | {"source_row": 0}]


def names_of(root: Path) -> tuple[Source, list[Fragment]]:
    """Return a lake of files of five rows, cut into fragments of two."""
    lake, settings = Folder.at(str(root)), Settings(fragment_images=2)
    source = Source(
        lake, ColumnSettings(), ImageSettings(), GEOMETRY, parse_where("image_id != ''")
    )
    return source, list(plan(lake, settings).every)


def test_names_of_many_fragments_are_those_of_each(tmp_path: Path, monkeypatch):
    # So that they are asked for in several times.
    monkeypatch.setattr("patchlake.pipeline.lake.source._HELD", 4)
    for number in range(3):
        names = [f"{number}/{row}" for row in range(5)]
        write(tmp_path, f"{number}.parquet", image_id=names)
    source, fragments = names_of(tmp_path)
    assert len(fragments) == 9
    assert list(source.each_names(fragments)) == [source.read_names(one) for one in fragments]
    assert list(source.each_names([])) == []


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_file_of_many_that_is_replaced_is_named(tmp_path: Path, change):
    for number in range(3):
        write(tmp_path, f"{number}.parquet", image_id=[f"{row}" for row in range(5)])
    source, fragments = names_of(tmp_path)
    change(tmp_path / "1.parquet")
    with pytest.raises(InputChanged, match=r"/1.parquet (changed|vanished) since it was planned"):
        list(source.each_names(fragments))


def test_a_file_of_many_that_is_damaged_is_named(tmp_path: Path):
    for number in range(3):
        write(tmp_path, f"{number}.parquet", image_id=[f"{row}" for row in range(5)])
    content = bytearray((tmp_path / "1.parquet").read_bytes())
    # Behind the magic number: the first page. The footer, by which it is planned, stays.
    content[4:64] = bytes(60)
    (tmp_path / "1.parquet").write_bytes(content)
    source, fragments = names_of(tmp_path)
    with pytest.raises(FileDamaged, match=r"/1.parquet cannot be read"):
        list(source.each_names(fragments))
