"""Whole jobs over other people's lakes: partitions as columns, long groups, Hugging Face's."""

import json
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY_FLAGS, read_scores

# 29 letters are 261 bytes, percent-encoded; then what a path could trip over.
GROUPS = [
    "\u90e8" * 29,
    "x" * 256,
    "..",
    ".",
    "",
    " ",
    "a/../b",
    "\U0001f600" * 70,
    "n\n\0",
    "G",
    "g",
]


@pytest.fixture(scope="module")
def flat(images: Path) -> pa.Table:
    """The rows of one product: 12 to train with, 4 good ones and 6 defective ones to test with."""
    files = sorted((images / "g=brushed_plate").glob("*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _write(flat: pa.Table, root: Path, *keys: str, also: str = "") -> None:
    for path in {tuple(row[key] for key in keys) for row in flat.select(keys).to_pylist()}:
        some = flat
        for key, value in zip(keys, path, strict=True):
            some = some.filter(pa.compute.equal(some.column(key), value))
        folder = root / also / "/".join(f"{k}={v}" for k, v in zip(keys, path, strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(some.drop_columns(list(keys)), folder / "a.parquet")


def _trained(model: Path) -> list[str]:
    files = list(model.rglob("images*.parquet"))
    return sorted(name for file in files for name in pq.read_table(file).column(0).to_pylist())


@pytest.mark.parametrize("keys", [("split",), ("split", "label"), ("label",)])
def test_partitions_of_split_and_label_choose_what_is_trained_on(
    flat: pa.Table, tmp_path: Path, patchlake, keys: tuple[str, ...]
):
    _write(flat, tmp_path / "lake", *keys)
    result = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert result.code == 0, result.err
    wanted = (pa.compute.field("split") == "train") & (pa.compute.field("label") == "good")
    assert _trained(tmp_path / "model") == sorted(flat.filter(wanted).column(0).to_pylist())
    score = ("score", tmp_path / "lake", tmp_path / "model", tmp_path / "scores", *TINY_FLAGS)
    assert patchlake(*score).code == 0
    result = patchlake("evaluate", tmp_path / "lake", tmp_path / "scores", "--json")
    counts = json.loads(result.out)["groups"]["brushed_plate"]
    assert (counts["images"], counts["anomalous"]) == (10, 6)


def test_a_path_that_disagrees_stops_a_fit_before_any_work(flat: pa.Table, tmp_path, patchlake):
    (tmp_path / "lake/label=good").mkdir(parents=True)
    pq.write_table(flat, tmp_path / "lake/label=good/a.parquet")
    result = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert result.code == 2
    assert "label=good/a.parquet: the folder says label='good', column 'label' says" in result.err
    assert not (tmp_path / "model" / "_runs").exists()


def test_keys_named_as_columns_of_scores_hide_none_of_them(
    flat: pa.Table, model: Path, tmp_path: Path, patchlake
):
    """In no engine, however it makes columns of folders."""
    keys = "status=done/version=2/image_score=1/model_id=m/scored_at=2020-01-01/group=007"
    keys += "/dt=2026-11-22"
    (tmp_path / "lake" / keys).mkdir(parents=True)
    wanted = pa.compute.equal(flat.column("split"), "train")
    flat = flat.filter(wanted).drop_columns("group").slice(0, 4)
    pq.write_table(flat, tmp_path / "lake" / keys / "a.parquet")
    fit = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert fit.code == 0, fit.err
    score = ("score", tmp_path / "lake", tmp_path / "model", tmp_path / "scores", *TINY_FLAGS)
    assert patchlake(*score, "--set", "columns.extra=[dt, label]").code == 0
    asked = 'status, "group", image_score > 0 AS scored, dt::VARCHAR AS dt, label'
    table = f"read_parquet('{tmp_path}/scores/version=*/**/*.parquet', hive_partitioning = true)"
    rows = duckdb.connect().sql(f"SELECT {asked} FROM {table} WHERE status = 'ok'").fetchall()
    assert set(rows) == {("ok", "007", True, "2026-11-22", "good")}
    version = next((tmp_path / "scores").glob("version=*")).name.removeprefix("version=")
    found = duckdb.connect().sql(f"SELECT DISTINCT version::VARCHAR FROM {table}").fetchall()
    assert found == [(version,)]
    frame = pl.scan_parquet(
        f"{tmp_path}/scores/version=*/**/*.parquet", hive_partitioning=True
    ).collect()
    assert set(frame["status"]) == {"ok"}
    assert set(frame["group"]) == {"007"}
    arrow = ds.dataset(
        tmp_path / "scores", format="parquet", partitioning="hive", exclude_invalid_files=False
    ).to_table()
    assert set(arrow.column("group").to_pylist()) == {"007"}
    assert set(arrow.column("source_status").to_pylist()) == {"done"}
    named = patchlake(*score[:3], tmp_path / "other", *TINY_FLAGS, "--set", "columns.extra=[group]")
    assert named.code == 2
    assert "columns.extra names 'group', which is a column of the score table" in named.err


def test_groups_of_any_length_and_script_are_stored(flat: pa.Table, tmp_path: Path, patchlake):
    good = flat.filter(pa.compute.equal(flat.column("split"), "train")).slice(0, 3)
    at = good.column_names.index("group")
    tables = [good.set_column(at, "group", pa.array([g] * 3, pa.string())) for g in GROUPS]
    (tmp_path / "lake").mkdir()
    pq.write_table(pa.concat_tables(tables), tmp_path / "lake/a.parquet", row_group_size=3)
    fit = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert fit.code == 0, fit.err
    score = ("score", tmp_path / "lake", tmp_path / "model", tmp_path / "scores", *TINY_FLAGS)
    assert patchlake(*score).code == 0
    rows = read_scores(tmp_path / "scores").to_pylist()
    assert sorted(row["group"] for row in rows) == sorted(GROUPS * 3)
    assert {row["status"] for row in rows} == {"ok"}


def test_a_long_group_is_ingested_and_scored_by_its_name(pictures: Path, tmp_path: Path, patchlake):
    name, source = "\u90e8" * 40, pictures / "brushed_plate/train/good"
    ingest = ("ingest", source, tmp_path / "lake", "--group", name, "--runner", "local")
    assert patchlake(*ingest).code == 0
    fit = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert fit.code == 0, fit.err
    score = ("score", tmp_path / "lake", tmp_path / "model", tmp_path / "scores", *TINY_FLAGS)
    assert patchlake(*score, "--where", f"group = '{name}' and g = '{name}'").code == 0
    assert set(read_scores(tmp_path / "scores").column("group").to_pylist()) == {name}
    none = patchlake(*score, "--where", "group = 'x'")
    assert none.code == 2
    assert "keeps none" in none.err


def test_a_data_set_of_hugging_face_as_it_comes(flat: pa.Table, tmp_path: Path, patchlake):
    names = sorted(set(flat.column("label").to_pylist()))
    for split in ("train", "test"):
        rows = [row for row in flat.to_pylist() if row["split"] == split]
        images = [{"bytes": r["image"], "path": r["image_id"].split("/")[-1]} for r in rows]
        table = pa.table(
            {
                "image": pa.array(
                    images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                ),
                "label": pa.array([names.index(r["label"]) for r in rows], pa.int64()),
                "mask": pa.array([r["mask"] for r in rows], pa.binary()),
            }
        )
        label = {"names": names, "_type": "ClassLabel"}
        info = json.dumps({"info": {"features": {"label": label}}})
        folder = tmp_path / "lake" / f"split={split}"
        folder.mkdir(parents=True)
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), folder / "0.parquet")
    without = patchlake("fit", tmp_path / "lake", tmp_path / "model", *TINY_FLAGS)
    assert (without.code, "--group NAME" in without.err) == (2, True)
    flags = (*TINY_FLAGS, "--group", "plate")
    fit = patchlake("fit", tmp_path / "lake", tmp_path / "model", *flags)
    assert fit.code == 0, fit.err
    assert len(_trained(tmp_path / "model")) == 12
    score = ("score", tmp_path / "lake", tmp_path / "model", tmp_path / "scores", *flags)
    assert patchlake(*score).code == 0
    assert len(read_scores(tmp_path / "scores")) == len(flat)
    result = patchlake("evaluate", tmp_path / "lake", tmp_path / "scores", "--json")
    counts = json.loads(result.out)["groups"]["plate"]
    assert (counts["images"], counts["anomalous"]) == (10, 6)
    update = patchlake(
        "fit", tmp_path / "lake", tmp_path / "model", "--update", "--runner", "local"
    )
    assert update.code == 0, update.err


def test_masks_that_are_paths_and_labels_that_are_numbers_are_scored(
    flat: pa.Table, model: Path, tmp_path: Path, patchlake
):
    rows = len(flat)
    for name, values in {"mask": ["m"] * rows, "label": [0] * rows, "split": [True] * rows}.items():
        at = flat.column_names.index(name)
        flat = flat.set_column(at, name, pa.array(values))
    flat = flat.set_column(0, "image_id", pa.array(range(rows)))
    (tmp_path / "lake").mkdir()
    pq.write_table(flat, tmp_path / "lake/a.parquet")
    score = ("score", tmp_path / "lake", model, tmp_path / "scores", *TINY_FLAGS)
    result = patchlake(*score)
    assert result.code == 0, result.err
    ids = read_scores(tmp_path / "scores").column("image_id").to_pylist()
    assert sorted(ids) == sorted(map(str, range(rows)))
