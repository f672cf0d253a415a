"""The plan: fragments partition the rows, their keys name their content, bad tables are named."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.config import ColumnSettings, Settings
from patchlake.pipeline.errors import ConfigError, FileDamaged, TableError
from patchlake.pipeline.reading import fragments, planning
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.reading.layout import Layout
from patchlake.pipeline.reading.named import RowReader
from patchlake.pipeline.reading.rows import group_rows
from patchlake.pipeline.storage.folder import Folder, escape
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.where.condition import parse_where

COLUMNS = ColumnSettings()
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
]


def _parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _images(groups: Sequence[str | None], text_type: pa.DataType = TEXT_TYPES[0]) -> pa.Table:
    return pa.table(
        {
            "image_id": pa.array([f"image {i}" for i in range(len(groups))], pa.string()).cast(
                text_type
            ),
            "image": pa.array([b"jpeg"] * len(groups), pa.binary()),
            "group": pa.array(groups, pa.string()).cast(text_type),
        }
    )


def plan_of(
    lake: Folder,
    columns: ColumnSettings,
    fragment_images: int,
    entries: Sequence[Entry] | None = None,
) -> Fragments:
    settings = Settings(columns=columns, fragment_images=fragment_images)
    return planning.plan(lake, settings, entries=entries).every


def _rows(lake: Folder, fragment: Fragment, names: Sequence[str]) -> list[tuple[int, dict]]:
    with lake.open(fragment.path) as handle:
        file = pq.ParquetFile(handle)
        layout = Layout(file.schema_arrow, COLUMNS, fragment.path, lake.path(fragment.path))
        batches = group_rows(file, fragment, RowReader(layout, ("group", *names)))
        return [
            pair
            for numbers, rows, _ in batches
            for pair in zip(numbers.to_pylist(), rows.select(names).to_pylist(), strict=True)
        ]


@pytest.fixture
def lake(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path))


# Runs, as cameras write them, so that some row groups hold one group and some have many; 70 rows
# are more than the 64 that are read at a time.
runs = st.lists(st.tuples(st.sampled_from(["a", "b", "ä/.."]), st.integers(1, 70)), max_size=5)


@given(
    files=st.lists(runs, min_size=1, max_size=2),
    row_group_size=st.integers(1, 90),
    fragment_images=st.integers(1, 80),
    text_type=st.sampled_from(TEXT_TYPES),
    write_statistics=st.booleans(),
)
@settings(max_examples=40)
def test_fragments_hold_every_row_once_in_file_order(
    files, row_group_size, fragment_images, text_type, write_statistics
):
    lake = Folder.at("memory://fragments")
    lake.remove("", recursive=True)
    expected = {}
    for number, file in enumerate(files):
        groups = [group for group, count in file for _ in range(count)]
        expected |= {(f"{number}.parquet", i): group for i, group in enumerate(groups)}
        options = {"row_group_size": row_group_size, "write_statistics": write_statistics}
        lake.write(f"{number}.parquet", _parquet(_images(groups, text_type), **options))

    asked = Settings(columns=COLUMNS, fragment_images=fragment_images)
    planned = planning.plan(lake, asked).every

    found = {}
    sizes: dict[tuple[str, str], list[int]] = {}
    for fragment in planned:
        rows = _rows(lake, fragment, ["image_id"])
        numbers = [number for number, _ in rows]
        assert numbers == sorted(numbers)
        assert [row for _, row in rows] == [{"image_id": f"image {number}"} for number in numbers]
        assert not found.keys() & {(fragment.path, number) for number in numbers}
        found |= {(fragment.path, number): fragment.group for number in numbers}
        sizes.setdefault((fragment.path, fragment.group), []).append(len(rows))
        assert len(rows) == fragment.images
    assert found == expected
    # As few as there can be: only the last of a group in a file is not full.
    for counts in sizes.values():
        assert set(counts[:-1]) <= {fragment_images}
        assert 0 < counts[-1] <= fragment_images
    assert Fragments.of(list(planned)) == planned
    assert [planned[number] for number in range(len(planned))] == list(planned)
    assert [Fragment.from_json(fragment.to_json()) for fragment in planned] == list(planned)
    keyed = planned.keyed({"a": "of a"}, "settings")
    assert list(keyed) == [f.keyed("of a" if f.group == "a" else "settings") for f in planned]
    assert len(set(keyed.keys.to_pylist())) == len(planned)
    assert planned.images == len(expected)
    assert list(planned.of_group("a")) == [f for f in planned if f.group == "a"]
    rule = parse_where("path == '0.parquet' and group != 'a'")
    kept = planning.plan(lake, asked, where=rule).kept
    assert list(kept) == [f for f in planned if f.path == "0.parquet" and f.group != "a"]


def test_fragments_are_ordered_by_path_and_first_row(lake):
    for name in ("b/x.parquet", "a.parquet", "b/c/y.parquet"):
        lake.write(name, _parquet(_images(["b", "a", "a", "b"]), row_group_size=2))
    planned = plan_of(lake, COLUMNS, 1)
    assert [f.path for f in planned[::4]] == ["a.parquet", "b/c/y.parquet", "b/x.parquet"]
    assert [(f.group, f.row_groups) for f in planned[:4]] == [
        ("a", (0,)),
        ("b", (0,)),
        ("a", (1,)),
        ("b", (1,)),
    ]


def test_only_the_files_asked_for_are_planned(lake):
    for name in ("a.parquet", "b.parquet"):
        lake.write(name, _parquet(_images(["x"])))
    planned = plan_of(lake, COLUMNS, 1, entries=[lake.entry("b.parquet")])
    assert [f.path for f in planned] == ["b.parquet"]


def test_a_key_is_stable_until_the_file_the_settings_or_the_cut_change(lake):
    def keys(settings: str = "settings", size: int = 3) -> set[str]:
        return {f.keyed(settings).key for f in plan_of(lake, COLUMNS, size)}

    lake.write("a.parquet", _parquet(_images(["x", "y", "x", "x", "x"])))
    before = keys()
    assert len(before) == 3
    assert keys() == before
    assert not keys(settings="others") & before
    # Cut at 4, group y is still one fragment of one row: its bytes do not change.
    assert len(keys(size=4) & before) == 1
    lake.write("b.parquet", _parquet(_images(["x"])))
    assert keys() > before
    lake.write("a.parquet", _parquet(_images(["x", "y", "x", "x", "x", "x"])))
    assert not keys() & before


@pytest.mark.parametrize(
    "change",
    [
        {"path": "b.parquet"},
        {"row_groups": (0, 1)},
        {"start": 1},
        {"group": "y"},
        {"images": 2},
        {"version": "w"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_depends_on_everything_that_names_the_rows(change):
    fragment = Fragment("a.parquet", (0,), 0, "x", 1, "v")
    assert replace(fragment, **change).keyed("s").key != fragment.keyed("s").key
    assert fragment.keyed("s").keyed("s") == fragment.keyed("s")


def test_folders_that_begin_with_an_underscore_or_a_dot_are_not_data(lake):
    table = _parquet(_images(["x"]))
    for name in ("_runs/a.parquet", ".hidden/a.parquet", "a/_b/c.parquet", "_a.parquet"):
        lake.write(name, table)
    lake.write("a/notes.txt", b"")
    with pytest.raises(ConfigError, match=r"holds no file named .* run `patchlake ingest`"):
        planning.list_tables(lake)
    lake.write("a/b_.c/d.parquet", table)
    assert [entry.name for entry in planning.list_tables(lake)] == ["a/b_.c/d.parquet"]


@pytest.mark.parametrize("groups", [["tile", "tile"], ["tile", "a/b"]])
def test_a_folder_that_disagrees_with_the_column_is_refused_with_both_names(lake, groups):
    lake.write(f"g={escape('a/b')}/x.parquet", _parquet(_images(groups)))
    with pytest.raises(TableError, match=r"folder says group 'a/b', column 'group' .*'tile'"):
        plan_of(lake, COLUMNS, 2)


def test_a_folder_that_agrees_with_the_column_is_one_of_the_partition_keys(lake):
    lake.write(f"dt=2026-11-23/g={escape('a/b')}/x.parquet", _parquet(_images(["a/b"])))
    lake.write(f"g={escape('a/b')}/empty.parquet", _parquet(_images([])))
    [fragment] = plan_of(lake, COLUMNS, 2)
    path = "dt=2026-11-23/g=a%2Fb/x.parquet"
    expected = {"dt": "2026-11-23", "g": "a/b", "group": "a/b", "path": path}
    assert fragments.keys_of(fragment.path, fragment.group) == expected


@pytest.mark.parametrize("text_type", TEXT_TYPES, ids=str)
def test_a_null_group_is_refused_with_its_row_group_and_number(lake, text_type):
    table = _images(["x", "x", "x", None, None, "x"], text_type)
    lake.write("a.parquet", _parquet(table, row_group_size=3))
    with pytest.raises(TableError, match="'group' is null in 2 of 3 rows of row group 1"):
        plan_of(lake, COLUMNS, 2)


@pytest.mark.parametrize("absent", ["image", "group"])
def test_a_missing_column_is_named_with_the_way_to_map_it(lake, absent):
    lake.write("a.parquet", _parquet(_images(["x"]).rename_columns({absent: "other"})))
    match = rf"a.parquet: column '{absent}' .*missing.*other.*--set columns.{absent}=NAME"
    with pytest.raises(TableError, match=match):
        plan_of(lake, COLUMNS, 2)


def test_columns_are_mapped_and_others_come_along(lake):
    table = _images(["x", "y", "x"]).rename_columns(["serial", "jpeg", "station"])
    table = table.set_column(1, "jpeg", table.column("jpeg").cast(pa.binary_view()))
    lake.write("a.parquet", _parquet(table.append_column("line", pa.array([1, 2, 3]))))
    columns = ColumnSettings(image_id="serial", image="jpeg", group="station", extra=("line",))
    fragment, _ = plan_of(lake, columns, 2)
    with lake.open("a.parquet") as handle:
        file = pq.ParquetFile(handle)
        layout = Layout(file.schema_arrow, columns, "a.parquet", "a.parquet")
        reader = RowReader(layout, ("image_id", "image", "group"), columns.extra)
        [(numbers, rows, theirs)] = group_rows(file, fragment, reader, ["serial"])
    assert reader.names == ["serial", "jpeg", "station", "line"]
    assert numbers.to_pylist() == [0, 2]
    assert rows.column_names == ["image_id", "image", "group", "extra:line"]
    assert rows.column("extra:line").to_pylist() == [1, 3]
    assert rows.column("image").to_pylist() == [b"jpeg", b"jpeg"]
    assert theirs.to_pydict() == {"serial": ["image 0", "image 2"]}


def test_a_file_may_name_images_instead_of_holding_them(lake):
    table = _images(["x"]).rename_columns({"image": "uri"})
    table = table.set_column(1, "uri", pa.array(["s3://bucket/a.jpg"]))
    lake.write("a.parquet", _parquet(table.append_column("label", pa.array(["good"]))))
    [fragment] = plan_of(lake, COLUMNS, 2)
    [(number, row)] = _rows(lake, fragment, ["image", "uri"])
    assert (number, row) == (0, {"image": None, "uri": "s3://bucket/a.jpg"})


_WHOLE = _parquet(_images(["x"]))


@pytest.mark.parametrize(
    "content",
    [b"", b"image_id,group\n1,x\n", _WHOLE[:-9], b"PAR1" + b"\xab" * 40 + b"\x28\0\0\0PAR1"],
    ids=["empty", "csv", "cut off", "damaged footer"],
)
def test_a_file_that_is_not_parquet_is_named(lake, content):
    lake.write("good.parquet", _WHOLE)
    lake.write("sub/bad.parquet", content)
    planned = planning.plan(lake, Settings())
    assert planned.every.paths == ["good.parquet"]
    assert list(planned.damaged) == ["sub/bad.parquet"]
    assert "/sub/bad.parquet is not Parquet: " in planned.damaged["sub/bad.parquet"]
    lake.remove("good.parquet")
    with pytest.raises(FileDamaged, match=r"/sub/bad\.parquet is not Parquet: "):
        planning.plan(lake, Settings())
