"""Plans with `--where` and a memory: DuckDB says which rows hold; nothing needless is read."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from patchlake.pipeline.config import ColumnSettings, ImageSettings, Settings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading import rows
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.reading.passing import extra_schema
from patchlake.pipeline.reading.planning import Plan, plan
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.where.condition import parse_where, read_where

SETTINGS = Settings(fragment_images=3)
GEOMETRY = Geometry((8, 8), None)
TAKEN = datetime(2026, 11, 20, tzinfo=UTC)


def _table(
    lines: Sequence[str | None], numbers: Sequence[int | None], kind: pa.DataType
) -> pa.Table:
    count = len(lines)
    times = [None if n is None else TAKEN + timedelta(hours=n) for n in numbers]
    return pa.table(
        {
            "image_id": pa.array([f"image {i}" for i in range(count)], pa.string()),
            "image": pa.array([b"jpeg" * 100] * count, pa.binary()),
            "group": pa.array(["x" if i % 5 else "y" for i in range(count)], pa.string()),
            "line": pa.array(lines, pa.string()).cast(kind),
            "exposure": pa.array(numbers, pa.int16()),
            "taken": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )


def _write(lake: Folder, name: str, table: pa.Table, row_group_size: int = 4) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    lake.write(name, sink.getvalue())


def _rows(lake: Folder, planned: Fragments, where: str | None, settings: Settings) -> set:
    source = Source(lake, settings.columns, ImageSettings(), GEOMETRY, read_where(where))
    return {
        (fragment.path, number)
        for fragment in planned
        for number in source.read(fragment).column("source_row").to_pylist()
    }


texts = st.sampled_from(["L1", "L2", "L3", "L"]).map(repr)
orders = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
comparisons = st.one_of(
    st.builds("line {} {}".format, orders, texts),
    st.builds("line {} ({}, {})".format, st.sampled_from(["in", "not in"]), texts, texts),
    st.builds("exposure {} {}".format, orders, st.sampled_from([*range(-1, 7), 100_000])),
    st.builds("exposure {} {}".format, orders, st.sampled_from([0.5, 2.5])),
    st.builds("taken {} '{}'".format, orders, st.sampled_from(["2026-11-20", "2026-11-20 03:00"])),
    st.builds("dt {} '{}'".format, orders, st.sampled_from(["2026-11-19", "2026-11-20"])),
    st.builds("{}".format, st.sampled_from(["\"group\" = 'x'", "\"group\" != 'x'"])),
)
expressions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds("{} and {}".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=4,
)
cells = st.lists(
    st.tuples(st.sampled_from(["L1", "L2", "L3", None]), st.sampled_from([0, 1, 2, 3, 4, 5, None])),
    max_size=14,
)


@given(
    files=st.lists(cells, min_size=1, max_size=3).filter(any),
    is_sorted=st.booleans(),
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]),
    where=expressions,
)
@example_settings(max_examples=60, deadline=None)
def test_rows_are_those_of_duckdb_and_no_fragment_with_one_is_left_out(
    files, is_sorted, kind, where, tmp_path_factory: pytest.TempPathFactory
):
    root = tmp_path_factory.mktemp("lake")
    lake = Folder.at(str(root))
    for number, cells_ in enumerate(files):
        ordered = sorted(cells_, key=str) if is_sorted else cells_
        table = _table([line for line, _ in ordered], [n for _, n in ordered], kind)
        _write(lake, f"dt=2026-11-{19 + number}/{number}.parquet", table)
    connection = duckdb.connect()
    connection.sql("SET TimeZone = 'UTC'")
    expected = {
        (Path(name).relative_to(root).as_posix(), row)
        for name, row in connection.sql(
            "SELECT filename, file_row_number FROM read_parquet("
            f"'{root}/**/*.parquet', filename=true, file_row_number=true, "
            f"hive_partitioning=true, hive_types_autocast=false) WHERE {where}"
        ).fetchall()
    }
    ours = where.replace('"group"', "group")
    planned = plan(lake, SETTINGS, where=parse_where(ours))
    assert _rows(lake, planned.kept, ours, SETTINGS) == expected
    left_out = set(planned.every) - set(planned.kept)
    assert not _rows(lake, Fragments.of(left_out), ours, SETTINGS) if left_out else True
    # Fragments are cut as if there were no rule.
    assert set(planned.every) <= set(plan(lake, SETTINGS).every)


class Counting(io.FileIO):
    """A file that counts what is read of it."""

    read_bytes = 0
    opened: ClassVar[list[str]] = []

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        Counting.read_bytes += count
        return count

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        Counting.read_bytes += len(content)
        return content


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, read_here: None) -> type[Counting]:
    def opened(folder: Folder, name: str, _version: str = "") -> Counting:
        Counting.opened.append(name)
        return Counting(f"{folder.root}/{name}")

    monkeypatch.setattr(Folder, "open", opened)
    Counting.read_bytes, Counting.opened = 0, []
    return Counting


@pytest.fixture
def lake(tmp_path: Path) -> Folder:
    """Two nights of three lines, 1 MB of images a row group of one line."""
    lake = Folder.at(str(tmp_path))
    for night in ("2026-11-21", "2026-11-22"):
        lines = [line for line in ("L1", "L2", "L3") for _ in range(10)]
        table = _table(lines, range(30), pa.string())
        images = [bytes([i]) * 100_000 for i in range(30)]
        table = table.set_column(1, "image", pa.array(images, pa.binary()))
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=10, compression="none", use_dictionary=False)
        lake.write(f"dt={night}/a.parquet", sink.getvalue())
    return lake


def test_partitions_and_row_groups_are_ruled_out_before_an_image_is_read(lake, counted):
    where = "dt = '2026-11-22' and line in ('L1', 'L2')"
    planned = plan(lake, SETTINGS, where=parse_where(where))
    assert counted.opened == ["dt=2026-11-22/a.parquet"]
    # 6 MB of images in all: of one file the footer, of which Arrow reads 64 KB at a time, twice
    # more for the statistics, and the group column where groups mix.
    assert 0 < counted.read_bytes < 4 * 65_536
    # A fragment may reach from one row group into the next.
    assert all(not {0, 1}.isdisjoint(f.row_groups) for f in planned.kept)
    assert len(planned.kept) < len(planned.every) == 10
    counted.read_bytes = 0
    assert len(_rows(lake, planned.kept, where, SETTINGS)) == 20
    # Each fragment reads its row groups anew.
    reads = sum(len(f.row_groups) for f in planned.kept)
    assert counted.read_bytes < reads * 1_050_000


def test_a_name_that_is_neither_key_nor_column_is_told_with_the_nearest(lake):
    with pytest.raises(
        ConfigError, match=r"'lin' is no partition key and no column of .*dt=.*'line'"
    ):
        plan(lake, SETTINGS, where=parse_where("lin = 'L1'"))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("line < 5", "5 is no string, as column 'line' is; write it in"),
        ("exposure = 'long'", "'long' is no int16, as column 'exposure' is"),
        ("line = exposure", "compares a column that is string with one that is int16 in dt="),
        ("not (exposure > image or line = taken)", "that is int16 with one that is binary"),
        ("taken > 'yesterday'", "'yesterday' is no time; write it as"),
        ("image = 'x' and image > 5", "'x' is no binary, as column 'image' is"),
    ],
)
def test_a_value_that_a_column_cannot_have_is_refused(lake, where, said):
    with pytest.raises(ConfigError, match=said):
        plan(lake, SETTINGS, where=parse_where(where))


def _equal(one: Plan, other: Plan) -> bool:
    return one.every == other.every and one.kept == other.kept


@pytest.mark.parametrize("where", [None, "dt = '2026-11-22'", "group = 'x'", "exposure < 12"])
def test_what_is_known_and_has_not_changed_is_not_opened_again(lake, counted, where):
    rule = read_where(where)
    known = plan(lake, SETTINGS).every
    counted.opened.clear()
    again = plan(lake, SETTINGS, where=rule, known=known)
    # A column's statistics are in the footer.
    assert len(counted.opened) == again.opened == (2 if where == "exposure < 12" else 0)
    assert _equal(again, plan(lake, SETTINGS, where=rule))


def test_files_that_are_new_changed_or_gone_are_seen(lake, counted):
    known = plan(lake, SETTINGS).every
    _write(lake, "dt=2026-11-21/a.parquet", _table(["L9"] * 5, range(5), pa.string()))
    _write(lake, "dt=2026-11-20/new.parquet", _table(["L9"] * 2, range(2), pa.string()))
    counted.opened.clear()
    again = plan(lake, SETTINGS, known=known)
    assert sorted(counted.opened) == ["dt=2026-11-20/new.parquet", "dt=2026-11-21/a.parquet"]
    assert _equal(again, plan(lake, SETTINGS))
    lake.remove("dt=2026-11-22/a.parquet")
    assert {f.path for f in plan(lake, SETTINGS, known=known).every} == set(again.every.paths) - {
        "dt=2026-11-22/a.parquet"
    }


def test_columns_may_be_fields_of_structs(tmp_path: Path):
    """As datasets of Hugging Face keep images, and Spark whatever it is given."""
    lake = Folder.at(str(tmp_path))
    image = pa.array(
        [{"bytes": b"jpeg", "path": "a"}, {"bytes": None, "path": "b"}, None],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    meta = pa.array(
        [{"station": {"name": name}, "serial": serial} for name, serial in ("xA", "yB", "xC")],
        pa.struct(
            [
                ("station", pa.struct([("name", pa.dictionary(pa.int8(), pa.string()))])),
                ("serial", pa.large_string()),
            ]
        ),
    )
    lists = pa.array([[1, 2], [], None], pa.list_(pa.int64()))
    _write(lake, "a.parquet", pa.table({"image": image, "meta": meta, "lists": lists}))
    columns = ColumnSettings(
        image_id="meta.serial",
        image="image.bytes",
        uri="image.path",
        group="meta.station.name",
        extra=("lists", "meta", "image.path"),
    )
    settings = Settings(fragment_images=3, columns=columns)
    planned = plan(lake, settings)
    assert [(f.group, f.images) for f in planned.every] == [("x", 2), ("y", 1)]
    extra = extra_schema(lake, planned.every, columns)
    source = Source(lake, columns, ImageSettings(), GEOMETRY, extra=extra)
    rows = source.read(planned.every[0])
    assert rows.column("image_id").to_pylist() == ["A", "C"]
    assert rows.column("image").to_pylist() == [b"jpeg", None]
    assert rows.column("uri").to_pylist() == ["a", None]
    assert rows.column("extra:lists").to_pylist() == [[1, 2], None]
    assert rows.column("extra:meta").to_pylist()[1] == {"station": {"name": "x"}, "serial": "C"}
    assert rows.column("extra:image.path").to_pylist() == ["a", None]


def test_a_struct_in_place_of_an_image_is_told_its_fields_that_fit(tmp_path: Path):
    lake = Folder.at(str(tmp_path))
    image = pa.array([{"jpeg": b"jpeg", "path": "a"}])
    table = _table(["L1"], [1], pa.string()).set_column(1, "image", image)
    _write(lake, "a.parquet", table)
    said = r"Fields that fit: image\.jpeg\. Map another with --set columns.image=NAME"
    with pytest.raises(TableError, match=said):
        plan(lake, SETTINGS)


def test_the_row_groups_of_a_fragment_are_all_that_is_read_of_many(lake, counted):
    fragment = Fragment(
        "dt=2026-11-21/a.parquet", (1,), 0, "x", 3, lake.entry("dt=2026-11-21/a.parquet").version
    )
    counted.read_bytes = 0
    Source(lake, ColumnSettings(), ImageSettings(), GEOMETRY).read(fragment)
    assert counted.read_bytes < 1_100_000


def test_of_a_large_row_group_what_comes_after_the_fragment_is_not_read(
    tmp_path: Path, counted, monkeypatch: pytest.MonkeyPatch
):
    table = _table(["L1"] * 300, range(300), pa.string())
    images = [i.to_bytes(2) * 5_000 for i in range(300)]
    table = table.set_column(1, "image", pa.array(images, pa.binary()))
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 20_000}
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=2, **options)
    lake = Folder.at(str(tmp_path))
    source = Source(lake, ColumnSettings(), ImageSettings(), GEOMETRY)
    planned = plan(lake, SETTINGS).every
    whole = [source.read(fragment) for fragment in planned]
    monkeypatch.setattr(rows, "HELD_BYTES", 1_000_000)
    monkeypatch.setattr(rows, "_BUFFER_BYTES", 50_000)
    for fragment, expected in zip(planned, whole, strict=True):
        counted.read_bytes = 0
        assert source.read(fragment) == expected
        # Of 3 MB: 64 rows of 10 kB at a time, up to those that have the fragment's last row.
        last = max(expected.column("source_row").to_pylist())
        assert counted.read_bytes < (last // 64 + 1) * 640_000 + 300_000


def test_rows_that_are_read_in_many_batches_keep_their_order(tmp_path: Path):
    lines = [f"L{number % 3}" for number in range(1000)]
    lake = Folder.at(str(tmp_path))
    _write(lake, "a.parquet", _table(lines, range(1000), pa.string()), row_group_size=100)
    settings = Settings(fragment_images=1000)
    where = parse_where("line = 'L1' and group = 'x'")
    planned = plan(lake, settings, where=where)
    source = Source(lake, ColumnSettings(), ImageSettings(), GEOMETRY, where)
    [fragment] = planned.kept
    rows = source.read(fragment)
    numbers = [n for n in range(1000) if n % 3 == 1 and n % 5]
    assert rows.column("source_row").to_pylist() == numbers
    assert rows.column("image_id").to_pylist() == [f"image {n}" for n in numbers]


def test_a_column_that_was_added_later_is_null_before(tmp_path):
    """`--where` on it: the older file has none that match, and every row where it is null."""
    lake = Folder.at(str(tmp_path))
    rows = {"image_id": ["a", "b"], "image": [b"x", b"y"], "group": ["g", "g"]}
    pq.write_table(pa.table(rows), tmp_path / "old.parquet")
    pq.write_table(pa.table(rows | {"line": ["L1", None]}), tmp_path / "young.parquet")

    def kept(text: str) -> list[str]:
        return plan(lake, Settings(), where=parse_where(text)).kept.paths

    assert kept("line = 'L1'") == ["young.parquet"]
    assert kept("line IS NULL") == ["old.parquet", "young.parquet"]
    assert kept("line IS NOT NULL OR image_id = 'a'") == ["old.parquet", "young.parquet"]
    with pytest.raises(ConfigError, match="'lime' is no partition key and no column"):
        kept("lime = 'L1'")
    source = Source(lake, ColumnSettings(), ImageSettings(), GEOMETRY, parse_where("line IS NULL"))
    ids = {
        f.path: source.read(f).column("image_id").to_pylist() for f in plan(lake, Settings()).every
    }
    assert ids == {"old.parquet": ["a", "b"], "young.parquet": ["b"]}


def test_a_group_is_asked_for_as_it_is_called_however_the_path_spells_it(tmp_path):
    for spelled, value in (("07", 7), ("12", 12)):
        (tmp_path / f"group={spelled}").mkdir()
        table = pa.table({"image_id": ["i"], "image": [b"x"], "group": [value]})
        pq.write_table(table, tmp_path / f"group={spelled}" / "a.parquet")
    lake = Folder(str(tmp_path))

    def groups(condition: str) -> list[str]:
        kept = plan(lake, Settings(), where=read_where(condition)).kept
        return kept.table.column("group").to_pylist()

    assert groups("\"group\" in ('7', '12')") == ["7", "12"]
    assert groups("\"group\" != '12'") == ["7"]
    assert groups("\"group\" = '07'") == []
