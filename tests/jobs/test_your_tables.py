"""Tables that others wrote: nested columns, `--where` on their columns, only new files opened."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.jobs import options
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import evaluate, fit, score
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.record.runs import Summary
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files, read_scores

COLUMNS = {
    "image": "photo.bytes",
    "image_id": "meta.serial",
    "group": "meta.station",
    "extra": ["meta", "line", "tags"],
}


@pytest.fixture(scope="module")
def flat(images: Path) -> pa.Table:
    """All images of the tiny lake, in one table of 44 rows."""
    files = sorted(images.rglob("*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


@pytest.fixture(scope="module")
def theirs(flat: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in somebody else's table: structs, lists, categories, a night and lines."""
    rows = [
        {
            "photo": {"bytes": row["image"], "path": row["image_id"]},
            "meta": {"serial": row["image_id"], "station": row["group"]},
            "line": f"L{number % 2}",
            "tags": ["a", "b"][: number % 3],
            "label": row["label"],
            "split": row["split"],
            "mask": row["mask"],
        }
        for number, row in enumerate(flat.to_pylist())
    ]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "line", table.column("line").dictionary_encode())
    root = tmp_path_factory.mktemp("theirs")
    (root / "dt=2026-11-22").mkdir()
    pq.write_table(table, root / "dt=2026-11-22" / "a.parquet", row_group_size=10)
    return root


def _settings(**changed: object) -> Settings:
    return load_settings(flags=TINY | {"columns": COLUMNS} | changed)


def test_structs_and_categories_score_as_the_plain_table_does(
    theirs: Path, images: Path, model: Path, scores: Path, tmp_path: Path
):
    score.run(str(theirs), str(model), str(tmp_path), _settings(), LOCAL)
    plain = {row["image_id"]: row["image_score"] for row in by_place(scores).values()}
    rows = read_scores(tmp_path).to_pylist()
    assert {row["image_id"]: row["image_score"] for row in rows} == plain
    for row in rows:
        assert row["meta"]["serial"] == row["image_id"]
        assert row["line"] == f"L{row['source_row'] % 2}"
        assert row["tags"] == ["a", "b"][: row["source_row"] % 3]


def test_where_on_a_column_takes_those_rows_to_fit_and_to_evaluate(theirs: Path, tmp_path: Path):
    settings, where = _settings(), "line = 'L1' AND dt = '2026-11-22'"
    manifest = fit.run(str(theirs), str(tmp_path / "model"), settings, LOCAL, where=where)
    assert set(manifest.groups) == {"brushed_plate", "woven_cloth"}
    trained = pa.concat_tables(
        [pq.read_table(file) for file in (tmp_path / "model").rglob("images*.parquet")]
    ).to_pylist()
    # Every group has 12 good images to train with.
    assert len(trained) == 12
    assert all(row["source_row"] % 2 for row in trained)
    scored = score.run(
        str(theirs), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL, where=where
    )
    # Each fragment has such a row, and parts are whole.
    assert scored.statuses == {"ok": 44}
    every = evaluate.run(str(theirs), str(tmp_path / "scores"))
    some = evaluate.run(str(theirs), str(tmp_path / "scores"), where)
    for group, values in some.items():
        assert every[group]["images"] == 10
        assert values["images"] == 5


def test_a_rerun_of_a_fit_with_another_where_is_another_model(theirs: Path, tmp_path: Path):
    settings = _settings()
    one = fit.run(str(theirs), str(tmp_path / "1"), settings, LOCAL, where="line = 'L0'")
    other = fit.run(str(theirs), str(tmp_path / "2"), settings, LOCAL, where="line = 'L1'")
    assert one.groups["woven_cloth"].digest != other.groups["woven_cloth"].digest


@pytest.mark.parametrize("writer", ["pandas", "duckdb", "rows of 10"])
def test_what_other_writers_wrote_scores_alike(
    writer: str, flat: pa.Table, model: Path, scores: Path, tmp_path: Path, tiny: Settings
):
    file = tmp_path / "lake" / "a.parquet"
    file.parent.mkdir()
    plain = flat.select(["image_id", "image", "group", "split", "label"])
    if writer == "pandas":
        frame = plain.to_pandas()
        frame["group"] = frame["group"].astype("category")
        frame["taken"] = pd.Timestamp("2026-11-22")
        frame.to_parquet(file, index=False)
    elif writer == "duckdb":
        duckdb.connect().sql(f"COPY (SELECT * FROM plain) TO '{file}' (ROW_GROUP_SIZE 2048)")
    else:
        pq.write_table(plain, file, row_group_size=10)
    score.run(str(file.parent), str(model), str(tmp_path / "scores"), tiny, LOCAL)
    expected = {row["image_id"]: row["image_score"] for row in by_place(scores).values()}
    rows = read_scores(tmp_path / "scores").to_pylist()
    assert {row["image_id"]: row["image_score"] for row in rows} == expected


class Night:
    """A lake that grows, of which a score opens what it must."""

    def __init__(
        self, root: Path, flat: pa.Table, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.root, self.flat, self.model = root, flat, model
        self.opened: list[str] = []
        original = Folder.open

        def spied(folder: Folder, name: str, version: str = ""):
            if folder.root == str(root / "lake"):
                self.opened.append(name)
            return original(folder, name, version)

        monkeypatch.setattr(Folder, "open", spied)
        monkeypatch.setattr("patchlake.pipeline.reading.apart._State.expendable", True)

    def add(self, name: str, begin: int, *, days_ago: float = 0) -> None:
        file = self.root / "lake" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.flat.slice(begin, 2), file)
        time = (datetime.now(UTC) - timedelta(days=days_ago)).timestamp()
        os.utime(file, (time, time))

    def score(self, **options_: object) -> Summary:
        self.opened.clear()
        settings = load_settings(flags=TINY)
        lake, table = str(self.root / "lake"), str(self.root / "scores")
        return score.run(lake, str(self.model), table, settings, LOCAL, **options_)


@pytest.fixture
def night(tmp_path: Path, flat: pa.Table, model: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    night = Night(tmp_path, flat, model, monkeypatch)
    for number in range(3):
        night.add(f"dt=2026-11-2{number}/a.parquet", 2 * number, days_ago=30)
    return night


def test_each_night_opens_what_is_new_or_has_changed(night: Night):
    assert night.score().statuses == {"ok": 6}
    assert night.score().statuses == {}
    assert night.opened == []
    night.add("dt=2026-11-23/a.parquet", 10)
    night.add("dt=2026-11-20/a.parquet", 20)
    assert night.score().statuses == {"ok": 4}
    assert set(night.opened) == {"dt=2026-11-20/a.parquet", "dt=2026-11-23/a.parquet"}
    # In the end the table is that of one run over the lake as it is.
    shutil.rmtree(night.root / "lake" / "dt=2026-11-21")
    before = output_files(night.root / "scores")
    assert night.score(where="dt >= '2026-11-22'").statuses == {}
    assert night.opened == []
    assert output_files(night.root / "scores") == before
    night.score()
    shutil.move(night.root / "scores", night.root / "old")
    night.score()
    assert set(night.opened) == {f"dt=2026-11-2{number}/a.parquet" for number in (0, 2, 3)}
    kept = {f"{k}": v for k, v in output_files(night.root / "old").items() if "11-21" not in str(k)}
    assert {f"{k}": v for k, v in output_files(night.root / "scores").items()}.keys() <= kept.keys()


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0 and what is no table"])
def test_a_memory_that_cannot_be_read_is_none(night: Night, damage: bytes):
    night.score()
    (memory,) = (night.root / "scores" / "_cuts").glob("*.arrow")
    whole = memory.read_bytes()
    memory.write_bytes(damage)
    assert night.score().statuses == {}
    assert len(night.opened) == 3
    assert memory.read_bytes() == whole


def test_since_looks_at_files_that_were_written_since_and_none_is_no_error(night: Night):
    since = options.parse_since("2d", datetime.now(UTC))
    assert night.score(since=since).statuses == {}
    assert night.opened == []
    night.add("dt=2026-11-23/a.parquet", 10, days_ago=0.1)
    assert night.score(since=since).statuses == {"ok": 2}
    assert set(night.opened) == {"dt=2026-11-23/a.parquet"}
    assert night.score().statuses == {"ok": 6}
    with pytest.raises(ConfigError, match="keeps none"):
        night.score(where="dt = '2027-01-01'")


def test_since_is_days_from_midnight_or_a_time():
    now = datetime(2026, 11, 25, 17, 30, tzinfo=UTC)
    assert options.parse_since("0d", now) == datetime(2026, 11, 25, tzinfo=UTC)
    assert options.parse_since("2d", now) == datetime(2026, 11, 23, tzinfo=UTC)
    assert options.parse_since("2026-11-22", now) == datetime(2026, 11, 22, tzinfo=UTC)
    there = options.parse_since("2026-11-22T18:00+01:00", now)
    assert there == datetime(2026, 11, 22, 17, tzinfo=UTC)
    for text in ("2", "yesterday", "-1d", ""):
        with pytest.raises(ConfigError, match="--since takes days as 2d"):
            options.parse_since(text, now)
