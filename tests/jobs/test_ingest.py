"""Ingest again: what changed in SOURCE arrives in IMAGES, once; and what is refused or listed."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import ingest
from patchlake.pipeline.lake import resync
from patchlake.pipeline.sources.sources import Arrangement
from tests.conftest import LOCAL


def _photo(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 2 * colour % 256, 7)).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number in range(4):
        _photo(root / f"p/train/good/{number}.png", number)
    _photo(root / "p/test/hole/9.png", 9)
    return root


def _rows(images: Path) -> dict[str, tuple[object, ...]]:
    names = ["image_id", "label", "mask_version", "sha256"]
    tables = [pq.ParquetFile(file).read(columns=names) for file in images.rglob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["image_id"]: (row["label"], row["mask_version"], row["sha256"]) for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def _again(source: Path, images: Path, settings: Settings) -> dict[str, tuple[object, ...]]:
    ingest.run(str(source), str(images), Arrangement(), settings, LOCAL)
    return _rows(images)


def test_what_changed_arrives_once(source: Path, tmp_path: Path, tiny: Settings):
    images = tmp_path / "images"
    before = _again(source, images, tiny)
    assert len(before) == 5
    _photo(source / "p/ground_truth/hole/9_mask.png", 255)
    (source / "p/test/crack").mkdir()
    (source / "p/train/good/3.png").rename(source / "p/test/crack/3.png")
    _photo(source / "p/train/good/0.png", 77)
    (source / "p/train/good/2.png").unlink()
    after = _again(source, images, tiny)
    assert sorted(after) == [
        *("p/test/crack/3.png", "p/test/hole/9.png"),
        *(f"p/train/good/{number}.png" for number in (0, 1, 2)),
    ]
    assert after["p/test/hole/9.png"][1] is not None
    assert after["p/test/crack/3.png"] == ("crack", None, before["p/train/good/3.png"][2])
    assert after["p/train/good/0.png"][2] != before["p/train/good/0.png"][2]
    for kept in ("p/train/good/1.png", "p/train/good/2.png"):
        assert after[kept] == before[kept]
    files = {file: file.read_bytes() for file in images.rglob("*.parquet")}
    assert _again(source, images, tiny) == after
    assert {file: file.read_bytes() for file in images.rglob("*.parquet")} == files


def test_a_tree_by_another_path_is_the_same_tree(source: Path, tmp_path: Path, tiny: Settings):
    images = tmp_path / "images"
    before = _again(source, images, tiny)
    (tmp_path / "alias").symlink_to(source)
    (tmp_path / "folder").symlink_to(tmp_path)
    files = {file: file.read_bytes() for file in images.rglob("*.parquet")}
    for other in (tmp_path / "alias", tmp_path / "folder/photos", tmp_path / "folder/alias"):
        assert _again(other, images, tiny) == before
    assert {file: file.read_bytes() for file in images.rglob("*.parquet")} == files
    # And the other way round; what is moved is known as well.
    second = tmp_path / "second"
    assert _again(tmp_path / "alias", second, tiny) == before
    (source / "p/train/good/3.png").rename(source / "p/train/good/4.png")
    assert sorted(_again(source, second, tiny))[2:5] == [
        f"p/train/good/{number}.png" for number in (1, 2, 4)
    ]


def test_a_manifest_that_says_more_brings_rows_up_to_date(
    source: Path, tmp_path: Path, tiny: Settings
):
    images, manifest = tmp_path / "images", source / "m.csv"

    def ingested(text: str) -> list[tuple[str, str]]:
        manifest.write_text(text)
        ingest.run(str(manifest), str(images), Arrangement(), tiny, LOCAL)
        rows = [
            row
            for file in images.rglob("*.parquet")
            for row in pq.ParquetFile(file).read(["image_id", "captured_at"]).to_pylist()
        ]
        return sorted((row["image_id"], str(row["captured_at"])[:10]) for row in rows)

    name = "p/test/hole/9.png"
    assert ingested(f"uri\n{name}\n") == [(name, "None")]
    assert ingested(f"uri,image_id\n{name},SER-1\n") == [("SER-1", "None")]
    timed = f"uri,image_id,captured_at\n{name},SER-1,2026-11-20T06:00:00.123456Z\n"
    assert ingested(timed) == [("SER-1", "2026-11-20")]
    files = list(images.rglob("*.parquet"))
    assert ingested(timed) == [("SER-1", "2026-11-20")]
    # What it does not say any more stays, however it spells the path.
    assert ingested(f"uri\n./{name}\n") == [("SER-1", "2026-11-20")]
    assert list(images.rglob("*.parquet")) == files
    assert ingested(timed.replace("11-20", "11-21")) == [("SER-1", "2026-11-21")]
    pieces = []
    for part_id in ("P7", "P7", "", "P8"):
        ingested(f"uri,part_id\n{name},{part_id}\n")
        [file] = images.rglob("*.parquet")
        pieces.append((file, pq.ParquetFile(file).read(["part_id"]).column(0).to_pylist()))
    assert [piece for _, piece in pieces] == [["P7"], ["P7"], ["P7"], ["P8"]]
    assert pieces[0] == pieces[1] == pieces[2]


def test_a_mask_that_is_another_images_now_leaves_its_row(
    source: Path, tmp_path: Path, tiny: Settings
):
    images = tmp_path / "images"
    _photo(source / "p/test/hole/8.png", 8)
    masks = source / "p/ground_truth/hole"
    _photo(masks / "8_mask.png", 255)
    before = _again(source, images, tiny)
    assert [before[f"p/test/hole/{n}.png"][1] is None for n in (8, 9)] == [False, True]
    (masks / "8_mask.png").rename(masks / "9_mask.png")
    after = _again(source, images, tiny)
    assert [after[f"p/test/hole/{n}.png"][1] is None for n in (8, 9)] == [True, False]
    assert _again(source, images, tiny) == after
    # One that is nobody's is kept.
    (masks / "9_mask.png").unlink()
    assert _again(source, images, tiny) == after


def test_the_row_of_a_copy_stays_when_the_copy_is_gone(source: Path, tmp_path: Path, patchlake):
    images = tmp_path / "images"
    shutil.copytree(source / "p", source / "q")
    patchlake("ingest", source, images, "--runner", "local")
    before = _rows(images)
    shutil.rmtree(source / "q")
    _photo(source / "p/train/good/7.png", 70)
    result = patchlake("ingest", source, images, "--runner", "local")
    assert (result.code, "5 images are no longer in SOURCE" in result.err) == (0, True)
    after = _rows(images)
    assert after.pop("p/train/good/7.png")[0] == "good"
    assert after == before
    assert not list(images.glob("_*"))


def test_a_kill_between_writing_and_removing_is_made_up_for(
    source: Path, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
):
    images = tmp_path / "images"
    _again(source, images, tiny)
    (source / "p/train/good/3.png").rename(source / "p/test/hole/3.png")
    _photo(source / "p/train/good/0.png", 77)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(resync, "_without", killed)
        with pytest.raises(KeyboardInterrupt):
            _again(source, images, tiny)
    after = _again(source, images, tiny)
    assert sorted(after) == [
        *("p/test/hole/3.png", "p/test/hole/9.png"),
        *(f"p/train/good/{number}.png" for number in (0, 1, 2)),
    ]


def test_a_mask_that_is_no_image_is_said_once_and_does_not_make_its_row_twice(
    source: Path, tmp_path: Path, patchlake
):
    mask = source / "p/ground_truth/hole/9_mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_text("drawn tomorrow")
    images = tmp_path / "images"
    first = patchlake("ingest", source, images, "--runner", "local")
    assert (first.code, "9_mask.png: a mask that is no image" in first.err) == (0, True)
    second = patchlake("ingest", source, images, "--runner", "local")
    assert (second.code, "ingested 0 images" in second.out) == (0, True)
    assert len(_rows(images)) == 5


def test_rows_of_other_people_stay(source: Path, tmp_path: Path, images: Path, tiny: Settings):
    lake = tmp_path / "images"
    shutil.copytree(images, lake)
    others = {file: file.read_bytes() for file in lake.rglob("*.parquet")}
    ingest.run(str(source), str(lake), Arrangement(), tiny, LOCAL)
    assert all(file.read_bytes() == content for file, content in others.items())


@pytest.mark.parametrize("images", ["photos", "photos/images", ".", "alias/images"])
def test_what_would_ingest_itself_is_refused(source: Path, patchlake, images: str):
    (source.parent / "alias").symlink_to(source)
    target = source.parent / images
    result = patchlake("ingest", source, target, "--runner", "local")
    assert result.code == 2
    assert "are one folder, or one lies in the other" in result.err


@pytest.mark.parametrize("name", ["p/masks/0.png", "p/train/0.png"])
def test_a_source_without_an_image_is_refused(name: str, tmp_path: Path, patchlake):
    """What is there, by its layout: masks alone, or nothing below a label."""
    _photo(tmp_path / "photos" / name, 7)
    refused = patchlake(
        "ingest", tmp_path / "photos", tmp_path / "images", "--layout", "mvtec", "--runner", "local"
    )
    assert refused.code == 2
    assert "none of its 1 files is an image to ingest" in refused.err
    assert not (tmp_path / "images").exists()


def test_names_cannot_write_to_the_terminal_and_large_files_are_not_read(
    source: Path, tmp_path: Path, patchlake
):
    (source / "p/train/good/\x1b[2J\x1b[31mred\n.png").write_bytes(b"no image")
    with (source / "p/train/good/film.png").open("wb") as film:
        film.truncate(2**36)
    result = patchlake("ingest", source, tmp_path / "images", "--runner", "local")
    assert result.code == 0
    assert "\x1b" not in result.err + result.out
    assert "film.png: 68719476736 bytes, image.max_bytes is" in result.err
    assert len(_rows(tmp_path / "images")) == 5
