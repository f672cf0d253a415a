"""Parts in an Iceberg table: one snapshot a run, every row once, whatever is killed or retried."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

pytest.importorskip("pyiceberg")

from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.utils.config import Config

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table import iceberg, parts
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import REGION, SCORES
from tests.reading.noise import ROWS, VERSION, fragment_of, put

NAME = "lake.plant.scores"
# SQLAlchemy leaves its pool of SQLite connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog on SQLite with a local warehouse, described as a user would."""
    (tmp_path / "warehouse").mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    # A process reads its environment when it imports pyiceberg.
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())


@pytest.fixture
def scores(tmp_path: Path) -> Folder:
    root = tmp_path / "scores"
    for file in range(4):
        put(root, fragment_of(21, file))
    return Folder(str(root))


def _table():
    return load_catalog("lake").load_table("plant.scores")


def _operations() -> list[str]:
    return [str(s.summary.operation.value) for s in _table().metadata.snapshots]


def _assert_holds_the_parts(scores: Folder) -> None:
    """Compare, through Arrow and in DuckDB, all rows and hive keys.

    But for `regions`: where they are null, pyiceberg 0.12 reads an empty list.
    """
    published = duckdb.from_arrow(_table().scan().to_arrow())
    found = published.project("* exclude (version, regions)").order("source_path, source_row")
    lake = duckdb.sql(
        f"""select * exclude (dt, version, regions), dt::varchar as dt
        from read_parquet('{scores.root}/version=*/**/*.parquet', hive_partitioning = true)
        order by source_path, source_row"""
    )
    assert found.columns == lake.columns
    assert found.fetchall() == lake.fetchall()


def test_parts_are_published_once_in_one_snapshot_a_run(scores: Folder, tmp_path: Path):
    assert iceberg.publish(NAME, scores, VERSION, run="r1") == iceberg.Snapshot(4, 0)
    _assert_holds_the_parts(scores)
    assert iceberg.publish(NAME, scores, VERSION, run="r1") is None
    put(tmp_path / "scores", fragment_of(22, 0))
    put(tmp_path / "scores", fragment_of(22, 1))
    assert iceberg.publish(NAME, scores, VERSION, run="r2") == iceberg.Snapshot(2, 0)
    _assert_holds_the_parts(scores)
    assert _operations() == ["append", "append"]
    assert [s.summary["patchlake.run"] for s in _table().metadata.snapshots] == ["r1", "r2"]


def test_a_table_of_before_there_were_parts_and_centres_of_regions_gets_them(
    scores: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields = [field for field in SCORES if field.name not in ("part_id", "pixel_threshold")]
    region = pa.struct([(one.name, one.type) for one in REGION if "centre" not in one.name])
    at = [field.name for field in fields].index("regions")
    fields[at] = pa.field("regions", pa.list_(region))
    catalog = load_catalog("lake")
    catalog.create_namespace("plant")
    with monkeypatch.context() as patched:
        old = pa.schema(fields).remove_metadata()
        patched.setattr(iceberg.pq, "read_schema", lambda handle: old)  # noqa: ARG005
        iceberg._create(catalog, ("plant", "scores"), scores, [parts.every_part(scores)[0].name])
    assert "part_id" not in _table().schema().column_names
    assert iceberg.publish(NAME, scores, VERSION, run="r1") == iceberg.Snapshot(4, 0)
    found = _table().scan().to_arrow()
    assert len(found) == 4 * ROWS
    assert {"part_id", "pixel_threshold"} <= set(found.column_names)
    regions = found.schema.field("regions").type.value_type
    assert {one.name for one in regions} == {one.name for one in REGION}


def test_the_table_is_partitioned_by_the_hive_keys_and_prunes_by_statistics(
    scores: Folder, tmp_path: Path
):
    put(tmp_path / "scores", fragment_of(22, 0))
    iceberg.publish(NAME, scores, VERSION, run="r")
    scan = _table().scan(row_filter="dt = '2026-11-22'")
    assert len(list(scan.plan_files())) == 1
    assert set(scan.to_arrow().column("dt").to_pylist()) == {"2026-11-22"}
    assert len(list(_table().scan(row_filter="\"group\" = 'b'").plan_files())) == 2
    assert list(_table().scan(row_filter="image_score > 2").plan_files()) == []


def test_replaced_and_expired_parts_leave_in_the_same_snapshot_that_brings_the_new(
    scores: Folder, tmp_path: Path
):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    old, new = fragment_of(21, 3), fragment_of(21, 3, version="2")
    put(tmp_path / "scores", new)
    leaving = [parts.part_name(VERSION, fragment) for fragment in (old, fragment_of(21, 0))]
    changed = iceberg.publish(NAME, scores, VERSION, leaving, run="r2")
    assert changed == iceberg.Snapshot(1, 2)
    parts.remove(scores, leaving)
    _assert_holds_the_parts(scores)
    assert _operations() == ["append", "overwrite"]
    assert iceberg.publish(NAME, scores, VERSION, run="r2") is None


def test_what_was_removed_by_a_run_without_the_table_leaves_with_the_next(scores: Folder):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    parts.remove(scores, [parts.part_name(VERSION, fragment_of(21, 0))])
    assert iceberg.publish(NAME, scores, VERSION, run="r2") == iceberg.Snapshot(0, 1)
    _assert_holds_the_parts(scores)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("commit", [0, 1], ids=["create", "append"])
def test_a_death_around_either_commit_is_made_up_for_by_the_next_run(
    moment: str, commit: int, scores: Folder, monkeypatch: pytest.MonkeyPatch
):
    real, calls = SqlCatalog.commit_table, iter(range(10))

    def dies(*arguments):
        is_it = next(calls) == commit
        if is_it and moment == "before":
            raise KeyboardInterrupt
        answer = real(*arguments)
        if is_it:
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", dies)
        with pytest.raises(KeyboardInterrupt):
            iceberg.publish(NAME, scores, VERSION, run="r")
    iceberg.publish(NAME, scores, VERSION, run="r")
    _assert_holds_the_parts(scores)
    assert _operations() == ["append"]


def test_a_run_that_is_overtaken_by_its_twin_adds_nothing_twice(
    scores: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    iceberg.publish(NAME, scores, VERSION, run="r")
    put(tmp_path / "scores", fragment_of(22, 0))
    real, refused = SqlCatalog.commit_table, []

    def overtaken(*arguments):
        if not refused:
            refused.append(True)
            assert iceberg.publish(NAME, scores, VERSION, run="twin") == iceberg.Snapshot(1, 0)
            try:
                return real(*arguments)
            except CommitFailedException:
                refused.append(True)
                raise
        return real(*arguments)

    monkeypatch.setattr(SqlCatalog, "commit_table", overtaken)
    assert iceberg.publish(NAME, scores, VERSION, run="r2") is None
    assert len(refused) == 2, "the catalog took the late commit"
    _assert_holds_the_parts(scores)
    assert len(_table().scan().to_arrow()) == 5 * ROWS


def _compact() -> None:
    """Rewrite all files into one, in one transaction, as another engine would."""
    table = _table()
    table.overwrite(table.scan().to_arrow())


def _files() -> list[str]:
    return [task.file.file_path for task in _table().scan().plan_files()]


def _counted() -> int:
    return len(_table().scan().to_arrow())


def test_a_table_that_another_engine_has_compacted_takes_the_next_parts_once(
    scores: Folder, tmp_path: Path
):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    _compact()
    assert not any(path.startswith(scores.path("version=")) for path in _files())
    assert iceberg.publish(NAME, scores, VERSION, run="r1") is None
    put(tmp_path / "scores", fragment_of(22, 0))
    put(tmp_path / "scores", fragment_of(22, 1))
    assert iceberg.publish(NAME, scores, VERSION, run="r2") == iceberg.Snapshot(2, 0)
    assert iceberg.publish(NAME, scores, VERSION, run="r2") is None
    assert _counted() == 6 * ROWS
    # Of what is still a part of ours, one may leave.
    leaving = [parts.part_name(VERSION, fragment_of(22, 0))]
    changed = iceberg.publish(NAME, scores, VERSION, leaving, run="r3")
    assert changed == iceberg.Snapshot(0, 1)
    parts.remove(scores, leaving)
    assert _counted() == 5 * ROWS
    _compact()
    # It was taken out by us, and may come again, as after `--restore`.
    put(tmp_path / "scores", fragment_of(22, 0))
    assert iceberg.publish(NAME, scores, VERSION, run="r4") == iceberg.Snapshot(1, 0)
    assert _counted() == 6 * ROWS


def test_a_part_whose_rows_were_rewritten_does_not_leave_and_nothing_changes(scores: Folder):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    _compact()
    before = _table().current_snapshot()
    leaving = [parts.part_name(VERSION, fragment_of(21, 0))]
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"1 parts that leave SCORES .* drop the table"):
            iceberg.publish(NAME, scores, VERSION, leaving, run="r2")
    assert _table().current_snapshot() == before
    # What the message says to do.
    load_catalog("lake").drop_table("plant.scores")
    parts.remove(scores, leaving)
    assert iceberg.publish(NAME, scores, VERSION, run="r2") == iceberg.Snapshot(3, 0)
    _assert_holds_the_parts(scores)


def test_a_compacted_table_without_its_history_is_refused(scores: Folder, tmp_path: Path):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    ours = _table().current_snapshot().snapshot_id
    # Of a later snapshot that is still there, only some parts could be known.
    put(tmp_path / "scores", fragment_of(22, 0))
    iceberg.publish(NAME, scores, VERSION, run="r2")
    _compact()
    _table().maintenance.expire_snapshots().by_id(ours).commit()
    with pytest.raises(ConfigError, match="have been expired; drop the table"):
        iceberg.publish(NAME, scores, VERSION, run="r3")


def test_a_run_that_is_overtaken_by_a_compaction_adds_nothing_twice(
    scores: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    iceberg.publish(NAME, scores, VERSION, run="r1")
    put(tmp_path / "scores", fragment_of(22, 0))
    real, calls = SqlCatalog.commit_table, []

    def overtaken(*arguments):
        calls.append(True)
        if len(calls) == 1:
            _compact()
        return real(*arguments)

    monkeypatch.setattr(SqlCatalog, "commit_table", overtaken)
    assert iceberg.publish(NAME, scores, VERSION, run="r2") == iceberg.Snapshot(1, 0)
    assert len(calls) == 3, "ours, which is refused; the compaction's; ours again"
    assert _counted() == 5 * ROWS


def test_a_table_of_others_is_refused(scores: Folder):
    iceberg.publish(NAME, scores, VERSION, run="r")
    copied = _table().scan().to_arrow()
    catalog = load_catalog("lake")
    spec = _table().spec()
    schema = _table().schema()
    catalog.drop_table("plant.scores")
    catalog.create_table("plant.scores", schema, partition_spec=spec).append(copied)
    with pytest.raises(ConfigError, match="patchlake has published none in it"):
        iceberg.publish(NAME, scores, VERSION, run="r")


def test_a_partition_key_that_the_table_lacks_is_told(scores: Folder, tmp_path: Path):
    iceberg.publish(NAME, scores, VERSION, run="r")
    source = Path(scores.root) / parts.part_name(VERSION, fragment_of(21, 0))
    target = Path(scores.root) / f"version={VERSION}" / "shift=2" / source.name
    target.parent.mkdir()
    source.rename(target)
    with pytest.raises(ConfigError, match=r"no partition field \['shift'\]"):
        iceberg.publish(NAME, scores, VERSION, run="r")


@pytest.mark.parametrize("name", ["scores", "lake.scores", "lake..scores"])
def test_a_name_that_is_none_and_a_catalog_that_is_not_there_are_told(name: str):
    with pytest.raises(ConfigError, match=r"takes catalog\.namespace\.table"):
        iceberg.check(name)
    with pytest.raises(ConfigError, match="PYICEBERG_CATALOG__NOWHERE__URI"):
        iceberg.check("nowhere.plant.scores")


def test_a_score_table_without_parts_makes_no_table(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert iceberg.publish(NAME, Folder(str(tmp_path / "empty")), VERSION, run="r") is None
    assert not load_catalog("lake").table_exists("plant.scores")
