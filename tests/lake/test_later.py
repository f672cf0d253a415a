"""What comes later than the pictures (labels, splits, masks) stays, whatever is ingested next."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import patchlake
from patchlake.pipeline.lake.resync import SupersededRows
from patchlake.pipeline.sources.sources import SourceImage
from patchlake.pipeline.stages.pack import to_packs


def _photo(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def _rows(lake: Path) -> dict[str, dict[str, object]]:
    rows = pq.ParquetDataset(lake, partitioning=None).read().to_pylist()
    named = {str(row["source_uri"]).rpartition("/src/")[2]: row for row in rows}
    assert len(named) == len(rows)
    return named


@pytest.fixture
def src(tmp_path: Path) -> Path:
    for number in range(3):
        _photo(tmp_path / f"src/{number}.png", 40 + number)
    return tmp_path / "src"


def _say(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_splits_of_a_tree_without_splits_stay(tmp_path: Path):
    src, lake = tmp_path / "src", tmp_path / "lake"
    for name in ("good/0.png", "bad/1.png"):
        _photo(src / name, len(name))
    patchlake.ingest(src, lake)
    later = _say(tmp_path / "later.csv", "uri,split", "src/good/0.png,train", "src/bad/1.png,test")
    patchlake.ingest(later, lake)
    assert patchlake.ingest(src, lake).images == 0
    found = {name: (row["split"], row["label"]) for name, row in _rows(lake).items()}
    assert found == {"good/0.png": ("train", "good"), "bad/1.png": ("test", "bad")}


def test_an_empty_cell_says_nothing(src: Path, tmp_path: Path):
    lake = tmp_path / "lake"
    first = "uri,group,split,label,image_id,captured_at,part_id"
    patchlake.ingest(
        _say(tmp_path / "a.csv", first, "src/0.png,tile,train,ok,id0,2026-11-20T02:00Z,P7"), lake
    )
    before = _rows(lake)
    assert before["0.png"]["part_id"] == "P7"
    again = _say(tmp_path / "b.csv", first, "src/0.png,,,,,,", "src/1.png,,,,,,")
    assert patchlake.ingest(again, lake).images == 1
    after = _rows(lake)
    assert after["0.png"] == before["0.png"]
    assert (after["1.png"]["group"], after["1.png"]["label"]) == ("b", None)


def test_keys_that_are_not_said_stay_where_they_are(src: Path, tmp_path: Path):
    lake = tmp_path / "lake"
    first = "uri,captured_at,line"
    whole = _say(tmp_path / "a.csv", first, "src/0.png,2026-11-20T02:00Z,L1")
    patchlake.ingest(whole, lake, group="tile", partitions=("dt", "line"))
    [place] = lake.rglob("*.parquet")
    assert place.parent.relative_to(lake) == Path("dt=2026-11-20/line=L1/g=tile")
    empty = _say(tmp_path / "b.csv", first, "src/0.png,,", "src/1.png,2026-11-21T02:00Z,")
    patchlake.ingest(empty, lake, group="tile", partitions=("dt", "line"))
    assert place.exists()
    # A label brings the row into another file, in the same folders: the lake knows the time.
    labels = _say(tmp_path / "c.csv", "uri,label", "src/0.png,ok")
    assert patchlake.ingest(labels, lake, partitions=("dt", "line")).images == 1
    assert {str(path.parent.relative_to(lake)) for path in lake.rglob("*.parquet")} == {
        "dt=2026-11-20/line=L1/g=tile",
        "dt=2026-11-21/line=__HIVE_DEFAULT_PARTITION__/g=tile",
    }


def test_keys_are_asked_for_on_a_second_ingest_only(src: Path, tmp_path: Path):
    lake = tmp_path / "lake"
    named = _say(tmp_path / "a.csv", "uri,line", *(f"src/{n}.png,L{n}" for n in range(3)))
    patchlake.ingest(named, lake, group="tile")
    assert patchlake.ingest(named, lake, group="tile", partitions=("line",)).images == 3
    assert {str(path.parent.relative_to(lake)) for path in lake.rglob("*.parquet")} == {
        f"line=L{n}/g=tile" for n in range(3)
    }
    assert len(_rows(lake)) == 3


def test_a_label_outlives_an_ingest_that_was_killed_before_it_removed_the_old_rows(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    labels = _say(tmp_path / "later.csv", "uri,label", *(f"src/{n}.png,ng" for n in range(3)))
    for attempt in range(6):
        lake = tmp_path / f"lake{attempt}"
        # Of another name each time: which of the two files sorts first is chance.
        patchlake.ingest(src, lake, group=f"tile{attempt}")

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(SupersededRows, "remove", killed)
            with pytest.raises(KeyboardInterrupt):
                patchlake.ingest(labels, lake)
        patchlake.ingest(src, lake)
        rows = _rows(lake)
        assert {(row["group"], row["label"]) for row in rows.values()} == {(f"tile{attempt}", "ng")}


def test_what_is_known_moves_with_a_picture(src: Path, tmp_path: Path):
    lake = tmp_path / "lake"
    patchlake.ingest(src, lake, group="tile")
    _photo(tmp_path / "mask.png", 255)
    later = _say(
        tmp_path / "later.csv",
        "uri,label,mask_uri,captured_at,part_id",
        "src/0.png,ng,mask.png,2026-11-20T02:00Z,P7",
    )
    patchlake.ingest(later, lake)
    before = _rows(lake)["0.png"]
    (src / "old").mkdir()
    shutil.move(src / "0.png", src / "old/0.png")
    (tmp_path / "mask.png").unlink()
    patchlake.ingest(src, lake, group="tile")
    after = _rows(lake)
    assert sorted(after) == ["1.png", "2.png", "old/0.png"]
    for name in ("label", "mask", "captured_at", "group", "sha256", "part_id"):
        assert after["old/0.png"][name] == before[name] is not None
    assert patchlake.ingest(src, lake, group="tile").images == 0


def test_a_picture_that_was_taken_again_is_of_no_known_piece(src: Path, tmp_path: Path):
    lake = tmp_path / "lake"
    named = _say(tmp_path / "a.csv", "uri,part_id,captured_at", "src/0.png,P7,2026-11-20T02:00Z")
    patchlake.ingest(named, lake, group="tile")
    _photo(src / "0.png", 99)
    assert patchlake.ingest(src, lake).images == 3
    again = _rows(lake)["0.png"]
    assert (again["group"], again["part_id"], again["captured_at"]) == ("tile", None, None)


@pytest.mark.parametrize("held", ["none", "numbers"])
def test_a_part_id_comes_to_files_that_were_written_without(src: Path, tmp_path: Path, held: str):
    """As an earlier release wrote them, or as somebody else has added numbers."""
    lake = tmp_path / "lake"
    patchlake.ingest(src, lake, group="tile")
    [file] = lake.rglob("*.parquet")
    table = pq.ParquetFile(file).read().drop_columns(["part_id"])
    if held == "numbers":
        table = table.append_column("part_id", [list(range(len(table)))])
    pq.write_table(table, file)
    assert patchlake.ingest(src, lake, group="tile").images == 0
    later = _say(tmp_path / "later.csv", "uri,part_id", "src/1.png,P7")
    assert patchlake.ingest(later, lake).images == 1
    files = [pq.ParquetFile(path).read() for path in lake.rglob("*.parquet")]
    rows = {row["image_id"]: row for table in files for row in table.to_pylist()}
    assert sum(map(len, files)) == len(rows) == 3
    [named] = [row for row in rows.values() if row["source_uri"].endswith("1.png")]
    assert (named["part_id"], named["group"]) == ("P7", "tile")
    assert patchlake.ingest(later, lake).images == 0


def test_files_of_images_without_part_id_keep_their_names():
    """A killed ingest is gone on with by a later release: the same rows, the same file."""
    image = SourceImage("a.png", "/src", "a.png", "v1", 9, "tile")
    [pack] = to_packs([[image]])
    # What patchlake 0.1.0 called it.
    assert pack.column("target")[0].as_py() == "g=tile/images-6041229725d3.parquet"
    [other] = to_packs([[replace(image, part_id="P7")]])
    assert other.column("target") != pack.column("target")


def test_masks_are_paired_within_their_own_partition(tmp_path: Path):
    src = tmp_path / "src"
    for number, line in enumerate(("L1", "L2")):
        _photo(src / f"line={line}/train/good/000.png", 10 + number)
        _photo(src / f"line={line}/test/stain/000.png", 20 + number)
    _photo(src / "line=L1/ground_truth/stain/000_mask.png", 255)
    # A folder that only has the key's name is a group.
    _photo(src / "line/train/good/000.png", 30)
    patchlake.ingest(src, tmp_path / "lake", group=None, partitions=("line",))
    rows = _rows(tmp_path / "lake")
    assert rows["line=L1/test/stain/000.png"]["mask"] is not None
    assert rows["line=L2/test/stain/000.png"]["mask"] is None
    groups = {name.partition("/")[0]: row["group"] for name, row in rows.items()}
    assert groups == {"line=L1": "src", "line=L2": "src", "line": "line"}


def test_json_names_what_was_left_out(src: Path, tmp_path: Path, patchlake):
    (src / "readme.txt").write_text("no picture")
    told = json.loads(patchlake("ingest", src, tmp_path / "lake", "--json").out)
    assert (told["images"], told["left_out"]) == (3, {"not an image": 1})
    assert "readme.txt" in told["skipped"][0]
