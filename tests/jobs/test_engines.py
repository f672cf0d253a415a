"""Analysts read both tables with their own engines, without our code."""

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from tests.conftest import read_scores


@pytest.fixture(scope="module")
def expected(scores: Path) -> dict[str, float]:
    rows = read_scores(scores).to_pylist()
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["group"]] = max(worst.get(row["group"], 0), row["image_score"])
    return worst


def test_duckdb_reads_the_scores(scores: Path, expected: dict[str, float]):
    parts = f"{scores}/version=*/**/*.parquet"
    rows = duckdb.sql(
        f"""select "group", max(image_score), any_value(len(anomaly_map)), count(*)
        from read_parquet('{parts}', hive_partitioning = true)
        where status = 'ok' and scored_at < now() group by "group" """
    ).fetchall()
    assert {row[0]: row[1] for row in rows} == expected
    assert {row[2:] for row in rows} == {(64, 22)}


def test_duckdb_reads_the_images(images: Path):
    rows = duckdb.sql(
        f"""select label, count(*), max(octet_length(image))
        from '{images}/**/*.parquet' where split = 'test' group by label"""
    ).fetchall()
    counts = {row[0]: row[1] for row in rows}
    assert counts.pop("good") == 8
    assert set(counts.values()) == {2}
    assert all(row[2] > 1000 for row in rows)


def test_pandas_reads_the_scores(scores: Path, expected: dict[str, float]):
    parts = sorted(scores.glob("version=*/**/*.parquet"))
    table = pd.concat(pd.read_parquet(part, engine="pyarrow") for part in parts)
    assert len(table) == 44
    assert table.groupby("group")["image_score"].max().to_dict() == expected
    first = table.iloc[0]
    assert max(first["anomaly_map"]) == first["image_score"]
    assert str(table["scored_at"].dtype).startswith("datetime64[us, UTC]")


def test_polars_reads_the_scores(scores: Path, expected: dict[str, float]):
    table = pl.read_parquet(f"{scores}/version=*/**/*.parquet", hive_partitioning=False)
    worst = table.group_by("group").agg(pl.col("image_score").max())
    assert dict(worst.iter_rows()) == expected
    assert table["anomaly_map"].list.len().unique().to_list() == [64]


def test_arrow_datasets_prune_by_the_hive_keys(scores: Path):
    versions = [path.name for path in scores.glob("version=*")]
    assert len(versions) == 1
    dataset = ds.dataset(scores / versions[0], partitioning="hive")
    kept = dataset.to_table(filter=ds.field("g") == "woven_cloth")
    assert set(kept.column("group").to_pylist()) == {"woven_cloth"}
    assert len(kept) == 22
