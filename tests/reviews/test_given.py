"""Reviews of anybody's CSV or Parquet file, and what is wrong in one."""

import os
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reviews.given import read_given
from patchlake.pipeline.reviews.table import append
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import REVIEWS
from tests.reviews.small import placed, review, reviews

STORAGE = StorageSettings()


def _given(path, text: str | bytes) -> pa.Table:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_given(str(path), STORAGE)


def test_two_columns_are_enough(tmp_path):
    path = tmp_path / "monday.csv"
    path.write_text("image_id,verdict\n007,good\nb.png,Defective\nc.png, UNSURE \n")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    found = read_given(str(path), STORAGE)
    assert found.schema.equals(REVIEWS)
    assert found.column("image_id").to_pylist() == ["007", "b.png", "c.png"]
    assert found.column("verdict").to_pylist() == ["good", "defective", "unsure"]
    assert found.column("reviewer").to_pylist() == ["monday.csv"] * 3
    at = datetime.fromtimestamp(1_000_000_000, UTC)
    assert found.column("reviewed_at").to_pylist() == [at] * 3
    assert found.column("group").null_count == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_excel_writes_is_read(tmp_path, encoding):
    text = "image_id;verdict;group\r\nä.png;good;Fliese\r\nb.png;defective;Fliese\r\n"
    found = _given(tmp_path / "x.csv", text.encode(encoding))
    assert found.select(["image_id", "verdict", "group"]).to_pylist() == [
        {"image_id": "b.png", "verdict": "defective", "group": "Fliese"},
        {"image_id": "ä.png", "verdict": "good", "group": "Fliese"},
    ]


def test_every_column_may_be_given_in_a_csv(tmp_path):
    text = (
        "image_id,verdict,group,reviewer,reviewed_at,root,source_path,source_row,sha256,"
        "is_anomalous,image_score,p_value,regions,else\n"
        "a,good,tile,bob,2026-11-29T07:00:00+01:00,/lake,x.parquet,12,ff,True,1.5,0.25,"
        '"[{""x"": 1, ""y"": 2, ""width"": 3, ""height"": 4}]",z\n'
    )
    (row,) = _given(tmp_path / "x.csv", text).to_pylist()
    expected = review(
        "a",
        "good",
        "bob",
        root="/lake",
        source_path="x.parquet",
        source_row=12,
        sha256="ff",
        is_anomalous=True,
        image_score=1.5,
        p_value=0.25,
        regions=[{"x": 1, "y": 2, "width": 3, "height": 4}],
    )
    assert row == dict.fromkeys(REVIEWS.names) | expected


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("b,maybe,,,,,", "verdict 'maybe' is none of defective, good, unsure"),
        ("b,,,,,,", "no verdict"),
        (",good,,,,,", "no image_id"),
        ("b,good,one,,,,", "source_row 'one' is no row number"),
        ("b,good,-1,,,,", "source_row '-1' is no row number"),
        ("b,good,1,morning,,,", "reviewed_at 'morning' is no time"),
        ("b,good,1,,perhaps,,", "is_anomalous 'perhaps' is no true or false"),
        ("b,good,1,,,inf,", "image_score 'inf' is no number"),
        ("b,good,1,,,,left", "regions 'left' is no list of boxes"),
        ('b,good,1,,,,"[{""x"": 1}]"', "regions .* is no list of boxes"),
        (f"b,good,1,,,,{'[' * 5000}", "regions .* is no list of boxes"),
        (f"{'b' * 5000},good,,,,,", "image_id has too many characters"),
    ],
)
def test_a_bad_cell_is_told_with_its_row(tmp_path, row, fault):
    header = "image_id,verdict,source_row,reviewed_at,is_anomalous,image_score,regions\n"
    with pytest.raises(TableError, match=rf"x\.csv: row 2: {fault}"):
        _given(tmp_path / "x.csv", f"{header}a,good,,2026-01-01,,,\n{row}\n")


def test_many_bad_rows_are_counted(tmp_path):
    text = "image_id,verdict,reviewed_at\n" + "a,never,2026-01-01\n" * 8
    with pytest.raises(TableError, match=r"row 1: .*row 5: .*; and 3 more rows like these$"):
        _given(tmp_path / "x.csv", text)


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("image,verdict", r"reviews need columns \['image_id', 'verdict'\]"),
        ("image_id,Verdict", "column 'Verdict' is not read; name it 'verdict'"),
        ("image_id,verdict,verdict", "column 'verdict' is there 2 times"),
    ],
)
def test_headers_that_are_not_ours_are_told(tmp_path, header, fault):
    with pytest.raises(TableError, match=fault):
        _given(tmp_path / "x.csv", f"{header}\na,good{',good' * (header.count(',') - 1)}\n")


def test_a_parquet_file_with_other_types_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table(
        {
            "image_id": pa.array([7, 8]),
            "verdict": pa.array(["OK", "good"]).dictionary_encode(),
            "source_row": pa.array([1, 2], pa.int8()),
            "image_score": pa.array([0.1, 0.2]),
            "reviewed_at": pa.array([0, 1], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, path)
    with pytest.raises(TableError, match="row 1: verdict 'OK' is none of"):
        read_given(str(path), STORAGE)
    pq.write_table(table.slice(1), path)
    (row,) = read_given(str(path), STORAGE).to_pylist()
    assert (row["image_id"], row["source_row"], row["verdict"]) == ("8", 2, "good")


def test_a_parquet_column_of_another_kind_is_told(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image_id": ["a"], "verdict": ["good"], "regions": [1]}), path)
    with pytest.raises(TableError, match="column 'regions' is int64, it needs list"):
        read_given(str(path), STORAGE)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("patchlake.pipeline.reviews.given.MOST_BYTES", 100)
    path = tmp_path / name
    if name == "x.csv":
        path.write_text("image_id,verdict\n" + "a,good\n" * 20)
    else:
        pq.write_table(pa.table({"image_id": ["a"] * 20, "verdict": ["good"] * 20}), path)
    with pytest.raises(TableError, match=r"more than the 100 bytes"):
        read_given(str(path), STORAGE)


def test_what_is_no_parquet_file_is_told(tmp_path):
    with pytest.raises(TableError, match=r"x\.parquet cannot be read"):
        _given(tmp_path / "x.parquet", b"no parquet")


def test_a_folder_is_read_as_the_table_that_it_is(tmp_path):
    append(Folder.at(str(tmp_path)), reviews(placed(0, "good")))
    assert len(read_given(str(tmp_path), STORAGE)) == 1


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there are no reviews at"):
        read_given(str(tmp_path / "none"), STORAGE)
    with pytest.raises(ConfigError, match=r"none\.csv does not exist"):
        read_given(str(tmp_path / "none.csv"), STORAGE)
