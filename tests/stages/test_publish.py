"""publish: a fragment's pictures by either store, of the rows that have one; and its regions."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import small_photo
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.scores.heatmap import ColourScale, to_jpeg
from patchlake.pipeline.scores.verdict import Judgement, Verdict
from patchlake.pipeline.stages.batch import FragmentBatch, FragmentResult
from patchlake.pipeline.stages.examined import Examined
from patchlake.pipeline.stages.publish import Publish
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import output_files

FRAGMENT = Fragment("x.parquet", (0,), 0, "g", 6, "1").keyed("settings")
# Of a file whose other rows are of another group.
ROWS = (2, 3, 5, 8, 13, 21)
WIDTH, HEIGHT = 40, 30


def stage(root: Path, **changed: object) -> Publish:
    made = Publish(
        geometry=Geometry((32, 32), None),
        scores=Folder.at(str(root)),
        version="v",
        scored_at=datetime(2026, 1, 1, tzinfo=UTC),
        heatmaps="all",
        heatmap_store="packed",
        model_ids={"g": "m"},
        scales={"g": ColourScale(0.2, 0.8)},
        verdicts={},
    )
    return replace(made, **changed)


def batch(statuses: Sequence[str]) -> pa.Table:
    """A fragment of six rows; only those that are ok have a score, a map and a picture."""
    rng = np.random.default_rng(0)
    ok = [status == "ok" for status in statuses]
    noise = rng.integers(0, 255, (len(ok), HEIGHT, WIDTH, 3), np.uint8)
    photos = [
        small_photo(Image.fromarray(one)) if is_ok else None
        for one, is_ok in zip(noise, ok, strict=True)
    ]
    rows = {
        "image_id": [str(row) for row in ROWS],
        "source_row": pa.array(ROWS, pa.int64()),
        "status": statuses,
        "image_score": pa.array([n / 8 if one else None for n, one in enumerate(ok)], pa.float32()),
        "width": pa.array([WIDTH if one else None for one in ok], pa.int32()),
        "height": pa.array([HEIGHT if one else None for one in ok], pa.int32()),
        "photo": pa.array(photos, pa.large_binary()),
    }
    maps = rng.random((sum(ok), 4, 4), np.float32) if any(ok) else np.empty(0, np.float32)
    return FragmentBatch(FRAGMENT, pa.table(rows), maps, attempts=1).to_arrow()


def paths(root: Path) -> dict[int, str | None]:
    """What the part says of each row."""
    [part] = root.glob("version=v/*.parquet")
    rows = pq.ParquetFile(part).read(["source_row", "heatmap_path"]).to_pylist()
    return {row["source_row"]: row["heatmap_path"] for row in rows}


def publish(made: Publish, statuses: Sequence[str] = ("ok",) * 6) -> None:
    assert FragmentResult.from_arrow(made(batch(statuses))).failure is None


@pytest.mark.parametrize("store", ["files", "packed"])
def test_threads_and_repetition_do_not_show(store, tmp_path: Path):
    for threads in (1, 3, 16):
        publish(stage(tmp_path / str(threads), heatmap_store=store, threads=threads))
    publish(stage(tmp_path / "1", heatmap_store=store))
    assert output_files(tmp_path / "1") == output_files(tmp_path / "3")
    assert output_files(tmp_path / "1") == output_files(tmp_path / "16")
    assert len(output_files(tmp_path / "1")) == {"files": 7, "packed": 2}[store]


@pytest.mark.parametrize("store", ["files", "packed"])
def test_a_row_without_a_picture_has_no_path_and_no_member(store, tmp_path: Path):
    statuses = ["ok", "unreadable", "ok", "missing", "too_large", "ok"]
    made = stage(tmp_path, heatmap_store=store)
    publish(made, statuses)
    found = paths(tmp_path)
    assert [row for row, path in found.items() if path] == [2, 5, 21]
    for row, path in found.items():
        name = heatmaps.heatmap_name(FRAGMENT.key, row, store)
        assert path in (name, None)
        if path:
            heatmaps.read(f"{tmp_path}/{path}", made.scores.storage)
    assert len(output_files(tmp_path)) == {"files": 4, "packed": 2}[store]


@pytest.mark.parametrize("changed", [{}, {"heatmaps": "none"}, {"scales": {}}])
def test_a_fragment_without_pictures_has_a_part_alone(changed, tmp_path: Path):
    publish(stage(tmp_path, **changed), ["ok" if changed else "missing"] * 6)
    assert set(paths(tmp_path).values()) == {None}
    assert not (tmp_path / "_heatmaps").exists()


def test_the_zip_is_put_before_the_part(tmp_path: Path):
    (tmp_path / "version=v").write_text("in the way of the part")
    made = stage(tmp_path)
    assert "version=v" in FragmentResult.from_arrow(made(batch(["ok"] * 6))).failure
    assert [path.name for path in (tmp_path / "_heatmaps").iterdir()] == [f"{FRAGMENT.key}.zip"]


@pytest.mark.parametrize("store", ["files", "packed"])
@pytest.mark.parametrize("asked", ["all", "anomalous", "none"])
def test_what_is_written_is_what_is_seen_of_each_image(store, asked, tmp_path: Path):
    # Of scores 0 to 5/8 and the third row failed, the last three are anomalous.
    verdict = Verdict(0.25, pixel_threshold=0.6)
    made = stage(tmp_path, heatmap_store=store, heatmaps=asked, verdicts={"g": verdict})
    statuses = ["ok", "ok", "unreadable", "ok", "ok", "ok"]
    publish(made, statuses)
    came = FragmentBatch.from_arrow(batch(statuses))
    photos = came.rows.column("photo").to_pylist()
    [part] = tmp_path.glob("version=v/*.parquet")
    rows = pq.ParquetFile(part).read().to_pylist()
    maps = iter(came.array)
    for number, row in enumerate(rows):
        if statuses[number] != "ok":
            assert row["regions"] is row["anomaly_map"] is row["heatmap_path"] is None
            assert row["image_score"] is row["threshold"] is row["is_anomalous"] is None
            continue
        judgement = Judgement(number / 8, 0.25, None, 0.6)
        image = Examined(judgement, next(maps), (WIDTH, HEIGHT), made.geometry)
        assert row["anomaly_map"] == image.anomaly_map.ravel().tolist()
        assert row["is_anomalous"] == judgement.is_anomalous == (number > 2)
        assert bool(row["regions"]) == row["is_anomalous"]
        boxes = [(one["x"], one["y"], one["area"], one["centre_x"]) for one in row["regions"]]
        # The table has float32.
        assert boxes == [
            (one.x, one.y, one.area, np.float32(one.centre_x)) for one in image.regions()
        ]
        is_drawn = asked == "all" or (asked == "anomalous" and row["is_anomalous"])
        assert (row["heatmap_path"] is not None) == is_drawn
        if is_drawn:
            expected = to_jpeg(image.picture(photos[number], made.scales["g"]))
            path = f"{tmp_path}/{row['heatmap_path']}"
            assert heatmaps.read(path, made.scores.storage) == expected
