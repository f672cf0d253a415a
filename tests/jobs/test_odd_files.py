"""A lake with files that nobody can read: each costs itself, is named, and is tried again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY_FLAGS, read_scores


def _pages(file: Path, column: str) -> tuple[int, int]:
    """Return where the column's pages of the first row group are."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    chunk = next(
        c for c in map(group.column, range(group.num_columns)) if column in c.path_in_schema
    )
    begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    return begin, begin + chunk.total_compressed_size


def _flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zeroed_group(file: Path) -> None:
    table = pq.ParquetFile(file).read()
    # Two groups in a row group: their column has to be read.
    groups = pa.array(["x", *table.column("group").to_pylist()[1:]])
    at = table.column_names.index("group")
    pq.write_table(table.set_column(at, "group", groups), file)
    begin, end = _pages(file, "group")
    content = bytearray(file.read_bytes())
    content[begin:end] = bytes(end - begin)
    file.write_bytes(content)


def flipped_image_with_checksum(file: Path) -> None:
    pq.write_table(pq.ParquetFile(file).read(), file, write_page_checksum=True, compression="none")
    begin, end = _pages(file, "image")
    _flip(file, (begin + end) // 2)


@pytest.fixture
def lake(images: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The lake, and one more file in it that is to be spoilt."""
    lake = tmp_path / "lake"
    shutil.copytree(images, lake)
    for control in lake.glob("_*"):
        shutil.rmtree(control) if control.is_dir() else control.unlink()
    [file] = (lake / "g=woven_cloth").glob("*.parquet")
    bad = lake / "g=woven_cloth" / "zz-bad.parquet"
    shutil.copy(file, bad)
    return lake, bad


@pytest.mark.parametrize("spoil", [truncated, empty, zeroed_group, flipped_image_with_checksum])
def test_a_damaged_file_fails_alone(
    patchlake, lake: tuple[Path, Path], model: Path, tmp_path: Path, spoil: Callable[[Path], None]
):
    root, bad = lake
    whole = bad.read_bytes()
    spoil(bad)
    scores = tmp_path / "scores"
    command = ("score", root, model, scores, "--heatmaps", "none", *TINY_FLAGS)
    done = patchlake(*command)
    assert done.code == 3
    assert "zz-bad.parquet" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert len(read_scores(scores)) >= 44
    assert "zz-bad.parquet" in patchlake("status", scores).out
    bad.write_bytes(whole)
    assert patchlake(*command).code == 0
    assert len({(r["source_path"], r["source_row"]) for r in read_scores(scores).to_pylist()}) == 66


@pytest.mark.parametrize("spoil", [truncated, zeroed_group])
def test_fit_names_it_and_the_way_out(patchlake, lake: tuple[Path, Path], tmp_path: Path, spoil):
    root, bad = lake
    spoil(bad)
    command = ("fit", root, tmp_path / "model", *TINY_FLAGS)
    refused = patchlake(*command)
    assert refused.code == 2
    assert "zz-bad.parquet" in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err
    where = "path <> 'g=woven_cloth/zz-bad.parquet'"
    assert f'--where "{where}"' in refused.err
    assert not (tmp_path / "model/model.json").exists()


def test_a_lake_without_rows_is_said_to_have_none(patchlake, images: Path, model, tmp_path: Path):
    [file] = (images / "g=woven_cloth").glob("*.parquet")
    table = pq.ParquetFile(file).read().slice(0, 0)
    (tmp_path / "lake").mkdir()
    pq.write_table(table, tmp_path / "lake/a.parquet")
    refused = patchlake("score", tmp_path / "lake", model, tmp_path / "scores", *TINY_FLAGS)
    assert refused.code == 2
    assert "none of the 1 Parquet files" in refused.err
    assert "--where" not in refused.err


def test_one_file_is_scored_as_in_its_folder(patchlake, lake, model: Path, tmp_path: Path):
    _, other = lake
    scores = tmp_path / "scores"
    flags = (model, scores, "--heatmaps", "none", *TINY_FLAGS)
    assert patchlake("score", other, *flags).code == 0
    assert {r["source_path"] for r in read_scores(scores).to_pylist()} == {"zz-bad.parquet"}
    assert patchlake("score", other, *flags).code == 0
    assert patchlake("evaluate", other, scores).code == 0
    again = patchlake("score", other.parent, *flags)
    assert again.code == 0
    assert "of them done" in again.err
    assert len(read_scores(scores)) == 44
