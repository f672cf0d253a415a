"""compact: the same rows in fewer, sorted files; whatever is killed, and no row twice."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.driver import compact
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.score_table import compaction, parts
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import output_files
from tests.reading.noise import ROWS, VERSION, fragment_of, put


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Two nights of ten parts, 40 rows and about 13 kB each."""
    root = tmp_path / "scores"
    for night in (21, 22):
        for file in range(10):
            put(root, fragment_of(night, file))
    return root


def _rows(table: Path) -> list[tuple[object, ...]]:
    """All rows as an analyst reads them, in the order of their identity."""
    if not list(table.glob("version=*/**/*.parquet")):
        return []
    return duckdb.sql(
        f"""select * from read_parquet('{table}/version=*/**/*.parquet', hive_partitioning = true)
        order by source_path, source_row"""
    ).fetchall()


def _part_bytes(scores: Path) -> int:
    return max(path.stat().st_size for path in scores.glob("version=*/**/*.parquet"))


def test_the_rows_are_the_same_in_fewer_files_sorted_with_the_worst_first(
    scores: Path, tmp_path: Path
):
    dest = tmp_path / "dest"
    written = compact.run(str(scores), str(dest), 4 * _part_bytes(scores))
    assert _rows(dest) == _rows(scores)
    files = sorted(dest.glob("version=*/**/*.parquet"))
    assert [str(file.relative_to(dest)) for file in files] == sorted(written)
    # Ten parts a night, four or five to a file.
    assert len(files) == 6
    for file in files:
        parquet = pq.ParquetFile(file)
        sorting = parquet.metadata.row_group(0).sorting_columns
        by = [parquet.schema.column(one.column_index).path for one in sorting]
        assert by == ["group", "image_score", "source_path", "source_row"]
        order = [
            (row["group"], row["image_score"] is None, -(row["image_score"] or 0))
            for row in parquet.read(columns=["group", "image_score"]).to_pylist()
        ]
        assert order == sorted(order)


def test_row_groups_prune_a_query_for_the_worst(tmp_path: Path):
    count = 9000
    score = np.random.default_rng(0).random(count, dtype=np.float32)
    table = pa.table(
        {
            "group": ["a"] * count,
            "source_path": ["x"] * count,
            "source_row": range(count),
            "image_score": score,
            "anomaly_map": list(np.ones((count, 28 * 28), np.float32)),
        }
    )
    from patchlake.pipeline.score_table.parquet import TABLE_ORDER, write_sorted

    with (tmp_path / "a.parquet").open("wb") as sink:
        write_sorted(table, sink, TABLE_ORDER)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    bounds = [metadata.row_group(i).column(3).statistics for i in range(metadata.num_row_groups)]
    worst = np.sort(score)[-100]
    assert metadata.num_row_groups == 2
    assert [b.max >= worst for b in bounds] == [True, False]


def test_nothing_new_writes_nothing(scores: Path, tmp_path: Path):
    dest = tmp_path / "dest"
    compact.run(str(scores), str(dest), 40_000)
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*")}
    assert compact.run(str(scores), str(dest), 40_000) == []
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*")} == before


def test_equal_score_tables_give_equal_bytes(scores: Path, tmp_path: Path):
    for name in "ab":
        compact.run(str(scores), str(tmp_path / name), 40_000)
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")


def test_new_parts_fill_small_files_and_leave_full_ones_alone(scores: Path, tmp_path: Path):
    dest, target = tmp_path / "dest", 4 * _part_bytes(scores)
    compact.run(str(scores), str(dest), target)
    for file in range(10, 13):
        put(scores, fragment_of(22, file))
    put(scores, fragment_of(23, 0))
    changed = compact.run(str(scores), str(dest), target)
    assert all("dt=2026-11-21" not in name for name in changed)
    assert len(changed) in (2, 3)
    assert _rows(dest) == _rows(scores)
    # Night after night a few parts: files are never much smaller than half the target, but one.
    for file in range(13, 33):
        put(scores, fragment_of(22, file))
        compact.run(str(scores), str(dest), target)
    assert _rows(dest) == _rows(scores)
    sizes = sorted(f.bytes for f in compaction.read(Folder(str(dest))).files if "11-22" in f.name)
    assert all(size >= target // 2 for size in sizes[1:])


def test_rows_that_leave_the_score_table_leave_the_compacted_one(scores: Path, tmp_path: Path):
    dest, target = tmp_path / "dest", 4 * _part_bytes(scores)
    compact.run(str(scores), str(dest), target)
    names = [entry.name for entry in parts.every_part(Folder(str(scores)))]
    # One part of a night is replaced, and the other night expires.
    old, new = fragment_of(22, 3), fragment_of(22, 3, version="2")
    put(scores, new)
    gone = [name for name in names if "11-21" in name] + [parts.part_name(VERSION, old)]
    parts.remove(Folder(str(scores)), gone)
    compact.run(str(scores), str(dest), target)
    assert _rows(dest) == _rows(scores)
    assert len(_rows(dest)) == 10 * ROWS
    assert not list(dest.glob("version=*/dt=2026-11-21/*.parquet"))


def test_the_score_table_is_only_read(scores: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*")}
    compact.run(str(scores), str(tmp_path / "dest"))
    assert {path: path.stat().st_mtime_ns for path in scores.rglob("*")} == before


def test_a_folder_of_another_table_or_of_none_is_refused(scores: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no part of a score table"):
        compact.run(str(tmp_path / "nothing"), str(tmp_path / "dest"))
    compact.run(str(scores), str(tmp_path / "dest"))
    put(tmp_path / "others", fragment_of(1, 1))
    with pytest.raises(ConfigError, match="choose another folder"):
        compact.run(str(tmp_path / "others"), str(tmp_path / "dest"))


def test_parts_whose_columns_do_not_go_together_are_named(scores: Path, tmp_path: Path):
    part = next(scores.glob("version=*/dt=2026-11-21/*.parquet"))
    table = pq.ParquetFile(part).read()
    wrong = table.set_column(0, "image_id", pa.array([b"x"] * len(table), pa.list_(pa.int8())))
    pq.write_table(wrong, part)
    with pytest.raises(TableError, match="dt=2026-11-21 have columns that differ"):
        compact.run(str(scores), str(tmp_path / "dest"), 10**9)


def test_a_second_compact_that_is_overtaken_changes_nothing(scores: Path, tmp_path: Path):
    dest = Folder(str(tmp_path / "dest"))
    late = compaction.plan(compaction.read(dest), parts.every_part(Folder(str(scores))), 10**9)
    for file in late.files:
        compaction.build(Folder(str(scores)), dest, file)
    compact.run(str(scores), dest.uri, 40_000)
    with pytest.raises(ConfigError, match="another compact has changed"):
        compaction.commit(dest, late)
    assert _rows(tmp_path / "dest") == _rows(scores)


def test_before_the_commit_the_table_is_the_old_one_and_after_it_the_next_start_makes_it_new(
    scores: Path, tmp_path: Path
):
    dest, source = Folder(str(tmp_path / "dest")), Folder(str(scores))
    compact.run(str(scores), dest.uri, 40_000)
    old = _rows(tmp_path / "dest")
    put(scores, fragment_of(22, 10))
    before = compaction.read(dest)
    after = compaction.plan(before, parts.every_part(source), 40_000)
    for file in compaction.rewritten(before, after):
        compaction.build(source, dest, file)
        assert _rows(tmp_path / "dest") == old
    compaction.commit(dest, after)
    assert _rows(tmp_path / "dest") == old
    assert compact.run(str(scores), dest.uri, 40_000) == []
    assert _rows(tmp_path / "dest") == _rows(scores)


# Says when it begins: most of the life of a process goes into starting Python.
_COMPACT = """import sys
from patchlake.pipeline.driver import compact
print("begin", flush=True)
compact.run(sys.argv[1], sys.argv[2], 40_000)
print("end", flush=True)
"""


def _start(scores: Path, dest: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _COMPACT, str(scores), str(dest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begin\n"
    return process


@pytest.mark.slow
def test_killed_at_random_moments_no_row_is_lost_or_twice_and_a_rerun_goes_on(
    scores: Path, tmp_path: Path
):
    draw = random.Random(6)
    undisturbed, dest = tmp_path / "undisturbed", tmp_path / "dest"
    with _start(scores, tmp_path / "timed") as process:
        started = time.monotonic()
        process.communicate()
        seconds = time.monotonic() - started
    killed = 0
    for night in range(1, 5):
        old = _rows(dest)
        for file in range(4):
            put(scores, fragment_of(night, file))
        new = _rows(scores)
        for _ in range(5):
            with _start(scores, dest) as process:
                time.sleep(seconds * draw.random())
                process.send_signal(signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    killed += 1
                else:
                    # The machine is less busy than it was when the first one was timed.
                    seconds *= 0.7
            found = _rows(dest)
            assert len({row[1:3] for row in found}) == len(found), "a row is there twice"
            assert set(map(str, old)) <= set(map(str, found)) <= set(map(str, new))
        compact.run(str(scores), str(dest), 40_000)
        assert _rows(dest) == new
        compact.run(str(scores), str(undisturbed), 40_000)
        assert output_files(dest) == output_files(undisturbed)
    assert killed > 5
