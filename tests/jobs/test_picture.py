"""Heatmaps in one file a fragment: scored, retired, compacted, and read one at a time."""

import io
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import patchlake as library
from patchlake.pipeline.config import VOCABULARY, Settings, digest, load_settings
from patchlake.pipeline.driver import compact, score, status
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.plan import output_digest
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, output_files, read_scores

PACKED_FLAGS = (*TINY_FLAGS, "--set", "score.heatmap_store=packed")


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(flags=TINY | {"score": {**TINY["score"], "heatmap_store": "packed"}})


@pytest.fixture(scope="module")
def packed(
    images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> Path:
    root = tmp_path_factory.mktemp("packed")
    score.run(str(images), str(model), str(root), settings, LOCAL)
    return root


def zips(table: Path) -> dict[str, Path]:
    return {str(path.relative_to(table)): path for path in table.glob("_heatmaps/*")}


def test_a_fragment_has_one_file_with_the_pictures_of_the_other_store(packed, scores: Path):
    theirs, ours = by_place(scores), by_place(packed)
    assert theirs.keys() == ours.keys()
    for place, row in ours.items():
        file, member = row["heatmap_path"].split("#")
        assert member == f"{place[1]}.jpg"
        picture = (scores / theirs[place]["heatmap_path"]).read_bytes()
        with zipfile.ZipFile(packed / file) as archive:
            assert archive.read(member) == picture
        assert library.picture(packed / row["heatmap_path"]) == picture
        assert library.picture(scores / theirs[place]["heatmap_path"]) == picture
        unlike = ("heatmap_path",)
        assert {k: v for k, v in row.items() if k not in unlike} == {
            k: v for k, v in theirs[place].items() if k not in unlike
        }
    assert len(zips(packed)) == len(list(packed.glob("version=*/**/*.parquet"))) == 6
    assert all(name.endswith(".zip") for name in zips(packed))


def test_threads_and_kills_change_no_byte(
    packed: Path, images: Path, model: Path, tmp_path: Path, settings: Settings
):
    shutil.copytree(packed, tmp_path / "scores")
    # Killed after a zip was put, and before it.
    parts = sorted((tmp_path / "scores").glob("version=*/**/*.parquet"))
    for part in parts[:4]:
        part.unlink()
    for part in parts[:2]:
        (tmp_path / "scores" / "_heatmaps" / f"{part.stem[-20:]}.zip").unlink()
    score.run(str(images), str(model), str(tmp_path / "scores"), settings, LOCAL)
    assert output_files(tmp_path / "scores") == output_files(packed)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_writes_the_same_zips(packed, images, model, tmp_path, settings, one_actor):
    from patchlake.pipeline.driver.execution import Execution

    score.run(str(images), str(model), str(tmp_path), settings, Execution("ray", None))
    assert output_files(tmp_path) == output_files(packed)


def test_both_stores_have_versions_of_their_own_and_without_pictures_one(settings: Settings):
    files, none = (
        load_settings(flags=TINY | {"score": {**TINY["score"], **changed}})
        for changed in ({}, {"heatmaps": "none"})
    )
    neither = load_settings(
        flags=TINY | {"score": {**TINY["score"], "heatmaps": "none", "heatmap_store": "packed"}}
    )
    assert len({output_digest(one) for one in (files, settings, none)}) == 3
    assert output_digest(neither) == output_digest(none)


def test_files_as_they_were_before_there_was_a_choice_keep_their_keys(tiny: Settings):
    before = {
        "image": tiny.image.model_dump(mode="json", exclude={"roi", "tile", "pixels"}),
        "score": {"heatmaps": "all", "scored_at": "2026-01-01T00:00:00Z"},
        "verdict": {"false_alarm_rate": 0.01},
        "columns": tiny.columns.model_dump(mode="json", exclude={*VOCABULARY, "roi"}),
        "fragment_images": 10,
    }
    assert output_digest(tiny) == digest(before)


def test_no_fragment_has_more_pictures_than_a_zip_is_to_hold():
    with pytest.raises(ConfigError, match=r"5000 images has more heatmaps than .* 4096; set a"):
        load_settings("", ["fragment_images=5000", "score.heatmap_store=packed"])
    with pytest.raises(ConfigError, match=r"'score.heatmap_store' is 'zip': "):
        load_settings("", ["score.heatmap_store=zip"])


def test_older_and_expired_parts_go_with_their_zips(
    packed: Path, images: Path, model: Path, scores: Path, tmp_path: Path, settings: Settings, tiny
):
    lake, table = tmp_path / "images", tmp_path / "scores"
    shutil.copytree(images, lake)
    for one in (settings, tiny):
        score.run(str(lake), str(model), str(table), one, LOCAL)
    changed = next(lake.glob("g=woven_cloth/*.parquet"))
    pq.write_table(pq.ParquetFile(changed).read().slice(0, 15), changed)
    summary = score.run(str(lake), str(model), str(table), settings, LOCAL)
    assert len(summary.removed_parts) == 3
    of_rows = {row["heatmap_path"].split("#")[0] for row in read_scores(table).to_pylist()}
    found = {str(path.relative_to(table)) for path in table.glob("_heatmaps/**/*.*")}
    assert found == of_rows
    # The other store's parts are of another version, and stay until they expire or are redone.
    assert sum(name.endswith(".zip") for name in found) == 3 + 2
    score.run(*(str(lake), str(model), str(table), settings, LOCAL), expire="g = 'brushed_plate'")
    left = {str(path.relative_to(table)) for path in table.glob("_heatmaps/**/*.*")}
    assert left == {row["heatmap_path"].split("#")[0] for row in read_scores(table).to_pylist()}
    assert sum(name.endswith(".zip") for name in left) == 2
    (run, *_) = status.read(str(table))
    assert run.state == "finished"


def test_a_compacted_table_and_a_dataset_name_pictures_in_zips(packed: Path, tmp_path: Path):
    compact.run(str(packed), str(tmp_path / "compacted"))
    for table in (packed, tmp_path / "compacted"):
        rows = library.open_scores(table).to_table(columns=["heatmap_path"]).column(0)
        assert len(rows) == 44
        assert library.picture(packed / rows[0].as_py()).startswith(b"\xff\xd8\xff")


def test_the_command_writes_a_picture_and_says_where(
    images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patchlake
):
    monkeypatch.chdir(tmp_path)
    assert patchlake("score", images, model, "scores", *PACKED_FLAGS, "--dry-run").code == 0
    assert not Path("scores").exists()
    assert patchlake("score", images, model, "scores", *PACKED_FLAGS).code == 0
    path = f"scores/{read_scores(Path('scores')).column('heatmap_path')[0].as_py()}"
    done = patchlake("picture", path, "out/a.jpg")
    assert (done.code, done.out) == (0, f"{tmp_path}/out/a.jpg\n")
    drawn = Path("out/a.jpg").read_bytes()
    assert drawn == library.picture(path)
    with Image.open(io.BytesIO(drawn)) as picture:
        assert (picture.format, picture.width) == ("JPEG", 256)
        # The photo, and its strip of one to four lines.
        assert picture.height - 256 in (20, 40, 60, 80)
    for command, told in (
        ((f"{path.partition('#')[0]}#99.jpg", "b.jpg"), "pictures, none of them of row"),
        ((path.partition("/")[2], "b.jpg"), "a heatmap_path is relative to SCORES"),
        (("scores/run.json", "b.jpg"), "is no heatmap_path"),
        ((path, "out"), "cannot be written: Is a directory"),
        ((path, "out/"), "'out/' is a folder; name the file"),
        ((path, "s3://k:s@b/x.jpg"), "carries credentials"),
    ):
        failed = patchlake("picture", *command)
        assert (failed.code, failed.out) == (2, "")
        assert told in failed.err
        assert len(failed.err.splitlines()) == 1
    assert not Path("b.jpg").exists()
