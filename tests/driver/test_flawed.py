"""The small lake on which settings are compared: what is trained on, held out, and flawed."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.flawed import write_flawed
from patchlake.pipeline.driver.training import choose_rows
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.images.flaws import KINDS
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.plan import plan_fragments
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import IMAGES


def written(lake: Path, target: Path, seed: int = 0) -> int:
    settings = Settings()
    folder = open_lake(str(lake), settings.storage)
    plan = plan_fragments(folder, settings, None).sound()
    source = Source(folder, settings.columns, settings.image, Geometry((1, 1), None), None)
    selections = choose_rows(source, plan.kept)
    return write_flawed(source, selections, plan.kept, Folder(str(target)), seed)


def rows_of(folder: Path) -> dict[str, list[dict[str, object]]]:
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("*.parquet"))]
    assert all(table.schema == IMAGES for table in tables)
    return {table.column("group")[0].as_py(): table.to_pylist() for table in tables}


def pixels_of(row: dict[str, object], name: str = "image") -> np.ndarray:
    content = row[name]
    assert isinstance(content, bytes)
    return np.asarray(Image.open(io.BytesIO(content)))


def shots(path: Path, parts: int, shots_of_each: int, *, ids: bool = True) -> None:
    """Write a lake of one group: several shots of each part, a grey level apart."""
    rows = []
    for part in range(parts):
        photo = np.random.default_rng(part).integers(0, 200, (40, 60, 3), dtype=np.uint8)
        for shot in range(shots_of_each):
            sink = io.BytesIO()
            Image.fromarray(photo + np.uint8(shot)).save(sink, "PNG")
            told = {"part_id": str(part)} if ids else {}
            named = {"image_id": f"{part}-{shot}", "image": sink.getvalue(), "group": "g"}
            rows.append({**named, "label": "good", "split": "train", **told})
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES), path / "images.parquet")


def test_good_photos_are_trained_on_or_held_out_and_flawed(images, tmp_path):
    assert written(images, tmp_path) == 24
    for rows in rows_of(tmp_path).values():
        held = {row["image_id"]: row for row in rows if row["split"] == "test"}
        trained = [row for row in rows if row["split"] == "train"]
        good = [name for name, row in held.items() if row["label"] == "good"]
        assert len(trained) + len(good) == 12
        assert 3 <= len(good) <= 6
        assert {row["label"] for row in trained} == {"good"}
        assert all("/train/good/" in str(row["image_id"]) for row in rows)
        assert len(held) == len(good) * (1 + len(KINDS))
        for name in good:
            photo = pixels_of(held[name])
            for kind in KINDS:
                row = held[name.replace("good/", f"{kind}/", 1)]
                mask = pixels_of(row, "mask") > 127
                assert mask.any()
                assert (pixels_of(row) != photo).any(axis=2)[mask].any()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(images, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        written(images, tmp_path / name, seed)
    found = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).glob("*.parquet"))]
        for name in ("one", "two", "three")
    }
    assert found["one"] == found["two"]
    assert found["one"] != found["three"]


@pytest.mark.parametrize("ids", [True, False])
def test_shots_of_one_part_are_held_out_together(tmp_path, ids):
    shots(tmp_path / "lake", parts=5, shots_of_each=4, ids=ids)
    written(tmp_path / "lake", tmp_path / "small")
    (rows,) = rows_of(tmp_path / "small").values()
    parts = {
        split: {str(row["image_id"]).split("/")[1][0] for row in rows if row["split"] == split}
        for split in ("train", "test")
    }
    assert len(parts["test"]) == 2
    assert not parts["train"] & parts["test"]


def test_too_few_photos_and_photos_of_one_part_are_refused(tmp_path):
    shots(tmp_path / "few", parts=7, shots_of_each=1)
    with pytest.raises(ConfigError, match=r"group 'g' has 7 good photos .* on 8 at least"):
        written(tmp_path / "few", tmp_path / "a")
    shots(tmp_path / "one", parts=1, shots_of_each=9)
    with pytest.raises(ConfigError, match="all of one part or look alike"):
        written(tmp_path / "one", tmp_path / "b")


def test_photos_that_cannot_be_read_are_left_out(tmp_path):
    shots(tmp_path / "lake", parts=9, shots_of_each=1)
    path = tmp_path / "lake" / "images.parquet"
    rows = pq.ParquetFile(path).read().to_pylist()
    rows[3]["image"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES), path)
    assert written(tmp_path / "lake", tmp_path / "small") == 8
