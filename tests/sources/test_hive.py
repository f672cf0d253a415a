"""Hive keys of the files that an ingest writes."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

import patchlake
from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.sources.hive import completed, require_keys, require_values, with_folders
from patchlake.pipeline.sources.sources import SourceImage


def image(name: str = "a.png", at: datetime | None = None) -> SourceImage:
    return SourceImage("a", "/photos", name, "v", 1, "tile", captured_at=at)


@pytest.mark.parametrize(
    ("name", "cells", "hive"),
    [
        ("a.png", {"dt": "2026-11-01", "line": "L1"}, "dt=2026-11-01/line=L1"),
        # What the table says counts more than a folder, and that more than the time.
        ("dt=2026-11-02/a.png", {"dt": "2026-11-01", "line": "L1"}, "dt=2026-11-01/line=L1"),
        ("dt=2026-11-02/line=L2/a.png", {}, "dt=2026-11-02/line=L2"),
        ("line=L%2F2/a.png", {"dt": None}, "dt=2026-11-28/line=L%2F2"),
        # A value cannot leave its folder, and none is Hive's own null.
        ("a.png", {"line": "../x y"}, "dt=2026-11-28/line=..%2Fx y"),
        ("line=/a.png", {"line": ""}, "dt=2026-11-28/line=__HIVE_DEFAULT_PARTITION__"),
    ],
)
def test_a_key_is_what_the_table_a_folder_or_the_time_says(name, cells, hive):
    taken = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)
    assert completed(with_folders(image(name, taken), ("dt", "line"), cells), "").hive == hive


def test_what_is_not_said_is_what_it_was():
    asked = with_folders(image(), ("dt", "line"), {"line": "L1"})
    assert completed(asked, "dt=2026-11-01/line=L7").hive == "dt=2026-11-01/line=L1"
    # Keys of before that are not asked for any more are left.
    assert completed(asked, "plant=P").hive == "dt=__HIVE_DEFAULT_PARTITION__/line=L1"
    assert completed(image(), "plant=P").hive == "plant=P"


def test_without_keys_a_file_lies_where_it_did():
    taken = image("dt=2026-11-02/a.png")
    assert with_folders(taken, (), {"dt": "1"}) is taken


@pytest.mark.parametrize("names", [("dt", "dt"), ("a b",), ("",), ("dt/x",), ("label",), ("g",)])
def test_a_key_is_a_word_that_means_nothing_else(names):
    with pytest.raises(ConfigError, match="--partition"):
        require_keys(names)


def test_a_key_that_nothing_says_is_refused():
    require_values([with_folders(image(), ("line",), {"line": "L1"}), image()], ("line",), "photos")
    nothing = [with_folders(image(), ("dt", "line"), {"line": "L1"})]
    with pytest.raises(
        ConfigError, match=r"--partition dt: photos says it of no image: .*captured"
    ):
        require_values(nothing, ("dt", "line"), "photos")


@pytest.fixture
def chosen(tiny: Settings, pictures: Path) -> Settings:
    """May read the pictures, which do not lie beside the manifest."""
    allowed = tiny.image.model_copy(update={"uri_prefixes": (str(pictures),)})
    return tiny.model_copy(update={"image": allowed})


@pytest.fixture
def manifest(pictures: Path, tmp_path: Path) -> Path:
    """Eight good images and two with a stain, on two lines and two days."""
    names = [f"train/good/{number:03d}.png" for number in range(8)]
    names += [f"test/stain/{number:03d}.png" for number in range(2)]
    rows = [
        f"{pictures / 'brushed_plate' / name},L{number % 2},2026-11-2{number // 5}T06:00:00Z"
        for number, name in enumerate(names)
    ]
    table = tmp_path / "night.csv"
    table.write_text("\n".join(["uri,line,captured_at", *rows]))
    return table


def test_a_lake_with_keys_is_fitted_and_scored_by_them(
    manifest: Path, tmp_path: Path, chosen: Settings
):
    lake, model, scores = (tmp_path / name for name in ("images", "model", "scores"))
    came = patchlake.ingest(
        manifest, lake, group="plate", partitions=("dt", "line"), settings=chosen
    )
    assert came.images == 10
    files = sorted(str(path.parent.relative_to(lake)) for path in lake.rglob("*.parquet"))
    assert files == [f"dt=2026-11-2{d}/line=L{n}/g=plate" for d in (0, 1) for n in (0, 1)]
    patchlake.fit(lake, model, settings=chosen)
    summary = patchlake.score(lake, model, scores, where="dt >= '2026-11-21'", settings=chosen)
    assert summary.images == 5
    found = duckdb.sql(
        f"SELECT line, count(*) FROM read_parquet('{scores}/version=*/**/*.parquet', "
        "hive_partitioning = true) WHERE dt = '2026-11-21' GROUP BY ALL ORDER BY line"
    ).fetchall()
    assert found == [("L0", 2), ("L1", 3)]


def test_labels_come_later_and_nothing_else_changes(
    manifest: Path, tmp_path: Path, chosen: Settings
):
    lake = tmp_path / "images"
    patchlake.ingest(manifest, lake, group="plate", partitions=("dt",), settings=chosen)
    labels = tmp_path / "labels.csv"
    lines = manifest.read_text().splitlines()[1:]
    named = [line.partition(",")[0] for line in lines]
    (stain,) = [name for name in named if name.endswith("stain/000.png")]
    mask = stain.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
    masks = tmp_path / "masks.csv"
    masks.write_text(f"uri,mask_uri,image_id\n{stain},{mask},first\n")
    assert patchlake.ingest(masks, lake, settings=chosen).images == 1
    labels.write_text(
        "\n".join(["uri,label", *(f"{u},{'ng' if u in named[8:] else 'ok'}" for u in named)])
    )
    again = patchlake.ingest(labels, lake, settings=chosen)
    assert again.images == 10
    rows = pq.read_table(lake, partitioning="hive").to_pylist()
    assert {(row["group"], row["label"]) for row in rows} == {("plate", "ok"), ("plate", "ng")}
    assert len(rows) == 10
    (first,) = [row for row in rows if row["image_id"] == "first"]
    assert (first["label"], first["mask"]) == ("ng", Path(mask).read_bytes())
    assert all(row["captured_at"] is not None for row in rows)
    assert {str(row["dt"])[:10] for row in rows} == {"2026-11-20", "2026-11-21"}
    # The nightly command, which says nothing of labels, leaves them.
    assert patchlake.ingest(manifest, lake, partitions=("dt",), settings=chosen).images == 0
