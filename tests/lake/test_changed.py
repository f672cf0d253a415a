"""What has become of a model's images: labels, splits, files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.changed import changed_images
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import TRAINING_IMAGES

NAMES = ("image_id", "group", "split", "label", "sha256")


def write(lake: Path, name: str, *rows: tuple[str | None, ...], without: tuple[str, ...] = ()):
    lake.mkdir(exist_ok=True)
    table = pa.table(
        {
            n: pa.array(column, pa.string())
            for n, column in zip(NAMES, zip(*rows, strict=True), strict=True)
        }
    )
    pq.write_table(table.drop_columns(list(without)), lake / name)


def trained(lake: Path, name: str, *rows: tuple[str, int, str | None]) -> dict[str, pa.Table]:
    """Images (id, row, sha256) that joined from a file as it is now."""
    version = Folder(str(lake)).entry(name).version
    images = [
        {
            "image_id": image_id,
            "source_path": name,
            "source_row": row,
            "source_version": version,
            "joined": 0,
            "sha256": sha256,
        }
        for image_id, row, sha256 in rows
    ]
    return {"p": pa.Table.from_pylist(images, TRAINING_IMAGES)}


GOOD = (("a", "p", "train", "good", "sa"), ("b", "p", "train", "good", "sb"))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write(tmp_path / "lake", "one.parquet", *GOOD)
    return tmp_path / "lake"


@pytest.fixture
def images(lake: Path) -> dict[str, pa.Table]:
    return trained(lake, "one.parquet", ("a", 0, "sa"), ("b", 1, "sb"))


def found(lake: Path, images: dict[str, pa.Table]) -> dict[str, str]:
    return changed_images(Folder(str(lake)), ColumnSettings(), images).get("p", {})


def test_nothing_is_read_of_files_that_are_as_they_were(lake: Path, images, monkeypatch):
    monkeypatch.setattr("patchlake.pipeline.lake.changed.read_named", None)
    assert found(lake, images) == {}


@pytest.mark.parametrize(
    ("row", "fate"),
    [
        (("b", "p", "train", "crack", "sb"), "its label is now 'crack'"),
        (("moved/b", "p", "train", "crack", "sb"), "its label is now 'crack'"),
        (("b", "p", "Test", "good", "sb"), "its split is now 'Test'"),
        (("b", "p", "cal", "good", "sb"), "its split is now 'cal'"),
        (("b", "p", "train", None, "sb"), "it has no label any more"),
        (("b", "p", "train", "good", "another"), "gone, or replaced by another picture"),
        (("c", "p", "train", "good", "sc"), "gone, or replaced by another picture"),
        (("moved/b", "p", None, "OK", "sb"), None),
    ],
)
def test_a_row_that_was_changed(lake: Path, images, row, fate: str | None):
    write(lake, "one.parquet", GOOD[0], row)
    assert found(lake, images) == ({} if fate is None else {"b": fate})


def test_a_row_added_later_says_that_the_same_picture_is_defective(lake: Path, images):
    write(lake, "two.parquet", ("later", "p", "test", "crack", "sa"))
    assert found(lake, images) == {"a": "its label is now 'crack'"}
    # The same picture to test on, or unlabelled, beside the one to train on, says nothing of it.
    write(lake, "two.parquet", ("a", "p", "test", "good", "sa"), ("a", "p", None, None, "sa"))
    assert found(lake, images) == {}


def test_an_id_that_comes_again_is_another_picture(lake: Path, images):
    write(lake, "two.parquet", ("a", "p", "test", "crack", "other"))
    assert found(lake, images) == {}
    write(lake, "two.parquet", ("a", "p", "test", "crack", None), without=("sha256",))
    assert found(lake, images) == {}


def test_without_checksums_the_id_tells_where_the_file_has_changed(lake: Path, images):
    write(lake, "one.parquet", GOOD[0], ("b", "p", "train", "crack", None), without=("sha256",))
    assert found(lake, images) == {"b": "its label is now 'crack'"}
    (lake / "one.parquet").unlink()
    write(lake, "two.parquet", GOOD[0], ("b", "p", "test", "good", None), without=("sha256",))
    assert found(lake, images) == {"b": "its split is now 'test'"}


def test_labels_that_come_to_a_lake_without_any(tmp_path: Path):
    lake = tmp_path / "lake"
    write(lake, "one.parquet", ("a", "p", None, None, None), ("b", "p", None, None, None))
    images = trained(lake, "one.parquet", ("a", 0, None), ("b", 1, None))
    write(lake, "one.parquet", ("a", "p", None, "ok", None), ("b", "p", None, "ko", None))
    assert found(lake, images) == {"b": "its label is now 'ko'"}


def test_another_group_is_another_image(lake: Path, images):
    write(lake, "two.parquet", ("a", "q", "train", "crack", "sa"))
    assert found(lake, images) == {}


def test_a_lake_without_tables_is_said(lake: Path, images):
    (lake / "one.parquet").unlink()
    with pytest.raises(ConfigError, match="no file named"):
        found(lake, images)
