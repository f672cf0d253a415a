"""parts: one verdict a piece, from a score table to a Parquet file."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchlake as library
from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import compact
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import PARTS
from tests.conftest import TINY, write_part

RATE = ("--set", "verdict.false_alarm_rate=0.05")


def _record(scores: Path, rate: float) -> None:
    """Record a run, as `score` begins one."""
    record = runs.RunRecord(
        run=f"run{rate}",
        verb="score",
        images="/images",
        where=None,
        version="abc",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        settings=load_settings(flags=TINY | {"verdict": {"false_alarm_rate": rate}}),
    )
    runs.begin(Folder.at(str(scores)), record, Fragments.of([]))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Pieces of two groups, P1 in both, over two nights; K = 199 where there is a p-value."""
    root = tmp_path / "scores"
    write_part(
        *(root, "dt=2026-11-21/g=tile"),
        part_id=["P1", "P1", "P2", None],
        p_value=[0.005, 0.6, 0.3, 0.005],
        image_score=[9.0, 2.0, 3.0, 9.0],
    )
    write_part(
        *(root, "dt=2026-11-22/g=tile"),
        part_id=["P1", "P2"],
        p_value=[0.4, None],
        image_score=[2.0, None],
        status=["ok", "unreadable"],
        scored_at=[datetime(2026, 1, 2, tzinfo=UTC)] * 2,
    )
    write_part(
        *(root, "dt=2026-11-22/g=plate"),
        group=["plate"] * 2,
        part_id=["P1", "P3"],
        p_value=[None, None],
        image_score=[1.0, 2.0],
    )
    return root


def test_one_row_a_piece_from_all_its_images(scores: Path, tmp_path: Path, patchlake):
    out = tmp_path / "parts.parquet"
    done = patchlake("parts", scores, out, *RATE)
    assert done.code == 0
    assert str(out) in done.out
    assert "4 of 7 images, at verdict.false_alarm_rate 0.05; 1 rows have no" in done.err
    file = pq.ParquetFile(out)
    assert file.schema_arrow.equals(PARTS, check_metadata=True)
    table = file.read()
    found = {(row["group"], row["part_id"]): row for row in table.to_pylist()}
    assert list(found) == [("plate", "P1"), ("plate", "P3"), ("tile", "P1"), ("tile", "P2")]
    first = found["tile", "P1"]
    assert (first["images"], first["scored"], first["tested"]) == (3, 3, 3)
    assert first["p_value"] == pytest.approx(0.015)
    assert first["is_anomalous"] is True
    assert first["worst_image_id"] == "dt=2026-11-21/g=tile/0.png"
    assert (first["worst_source_path"], first["worst_source_row"]) == (
        "dt=2026-11-21/g=tile/images.parquet",
        0,
    )
    assert (first["first_scored_at"].day, first["last_scored_at"].day) == (1, 2)
    second = found["tile", "P2"]
    assert (second["images"], second["scored"], second["tested"]) == (2, 1, 1)
    assert (second["is_anomalous"], second["p_value"]) == (False, pytest.approx(0.3))
    other = found["plate", "P1"]
    assert (other["p_value"], other["is_anomalous"], other["worst_image_score"]) == (None, None, 1)
    assert library.parts(scores, settings=_at(0.05)) == table


def _at(rate: float) -> library.Settings:
    return library.settings(verdict={"false_alarm_rate": rate})


def test_the_rate_is_that_of_the_newest_run_unless_it_is_given(scores: Path, patchlake):
    refused = patchlake("parts", scores)
    assert refused.code == 2
    assert "no record of a run that scored version 'abc'" in refused.err
    assert "--set verdict.false_alarm_rate=0.01" in refused.err
    _record(scores, 0.05)
    assert library.parts(scores).column("is_anomalous").to_pylist()[2] is True
    strict = library.parts(scores, settings=_at(0.01))
    assert strict.column("is_anomalous").to_pylist()[2] is False


def test_pieces_that_can_never_be_anomalous_are_said(scores: Path, patchlake):
    done = patchlake("parts", scores, "--set", "verdict.false_alarm_rate=0.012")
    said = " ".join(done.err.split())
    assert "group 'tile': none of 1 parts of 3 images or more is anomalous, nor can be" in said
    assert "is 0.005, and 3 times that is above verdict.false_alarm_rate, 0.012" in said
    # 3 / 250 is 0.012.
    assert "where judged_parts in model.json is below 249," in said
    assert "nor can be" not in patchlake("parts", scores, *RATE).err


def test_equal_scores_give_equal_bytes_also_when_they_are_compacted(scores: Path, tmp_path: Path):
    compact.run(str(scores), str(tmp_path / "compacted"))
    for name, table in (("a", scores), ("b", scores), ("c", tmp_path / "compacted")):
        library.parts(table, tmp_path / f"{name}.parquet", settings=_at(0.05))
    assert len({(tmp_path / f"{name}.parquet").read_bytes() for name in "abc"}) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        *("a.parquet", "b.parquet", "c.parquet"),
    ]


def test_what_has_no_piece_is_refused(tmp_path: Path):
    part = write_part(tmp_path / "scores", "g=tile", p_value=[0.5, 0.5])
    with pytest.raises(
        ConfigError, match=r"none of the 2 rows of version 'abc' of .* columns.part_id=NAME"
    ):
        library.parts(tmp_path / "scores", settings=_at(0.05))
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["part_id"]), part)
    with pytest.raises(TableError, match=r"has no column part_id: it was scored by an earlier"):
        library.parts(tmp_path / "scores", settings=_at(0.05))


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("parts.csv", "is not the name of a Parquet file; end it with .parquet"),
        ("folder/", "is not the name of a Parquet file"),
        ("scores/version=abc/parts.parquet", "is among the rows of"),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_is_read(
    scores: Path, tmp_path: Path, out: str, why: str
):
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match=why):
        library.parts(scores, f"{tmp_path}/{out}", settings=_at(0.05))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_what_was_there_is_replaced_whole(scores: Path, tmp_path: Path):
    out = tmp_path / "parts.parquet"
    out.write_text(json.dumps("something else"))
    assert isinstance(library.parts(scores, out, settings=_at(0.05)), pa.Table)
    assert len(pq.ParquetFile(out).read()) == 4
