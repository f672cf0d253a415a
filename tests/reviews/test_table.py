"""The reviews table: many write at once, none overwrites another, damage is told."""

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reviews.table import append, read, sorted_rows
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import REVIEWS
from tests.reviews.small import placed, review, reviews

WRITERS, EACH = 4, 6


def _write(root: str, writer: int) -> None:
    for number in range(EACH):
        append(Folder.at(root), reviews(placed(number, "good", f"reviewer {writer}", number)))


def test_several_write_at_once_and_nothing_is_lost(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write, args=(str(tmp_path), number)) for number in range(WRITERS)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0] * WRITERS
    found = read(Folder.at(str(tmp_path)))
    said = set(zip(*(found.column(n).to_pylist() for n in ("reviewer", "source_row")), strict=True))
    assert len(found) == WRITERS * EACH
    assert said == {(f"reviewer {w}", n) for w in range(WRITERS) for n in range(EACH)}
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("reviews-")]


@pytest.mark.parametrize("scheme", ["disk", "memory"])
def test_what_is_written_is_read_and_the_same_again_is_the_same_file(tmp_path, scheme):
    folder = Folder.at(str(tmp_path) if scheme == "disk" else "memory://reviews-table")
    folder.remove("", recursive=True)
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    table = reviews(
        placed(2, "defective", regions=[box], is_anomalous=True, p_value=0.5, sha256="ab"),
        review("x", "unsure", group=None),
    )
    first = append(folder, table)
    assert first.startswith("reviews-20261129T060000.000000Z-")
    assert append(folder, sorted_rows(table)) == first
    other = append(folder, reviews(review("y", "good", minute=1)))
    found = read(folder)
    assert found.schema.equals(REVIEWS)
    assert [entry.name for entry in folder.find()] == sorted([first, other])
    assert found.select(["image_id", "verdict"]).to_pylist() == [
        {"image_id": "2.png", "verdict": "defective"},
        {"image_id": "x", "verdict": "unsure"},
        {"image_id": "y", "verdict": "good"},
    ]
    assert found.column("regions")[0].as_py() == [box]


def test_a_folder_that_is_not_there_has_no_reviews(tmp_path):
    assert len(read(Folder.at(str(tmp_path / "none")))) == 0


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (review("a", "Good"), "verdict 'Good' is none of defective, good, unsure"),
        (review("", "good"), "no image_id"),
        (review("a", "good", reviewer="x" * 4097), "reviewer has too many characters"),
        (placed(-1, "good"), "source_row is negative"),
        (
            review("a", "good", regions=[{"x": 0, "y": 0, "width": 0, "height": 1}]),
            "a region is no box of pixels",
        ),
        (
            review("a", "good", regions=[{"x": 0, "y": 0, "width": 1, "height": 1}] * 101),
            "101 regions, of an image at most 100",
        ),
    ],
)
def test_what_nobody_can_have_decided_is_neither_written_nor_read(tmp_path, row, fault):
    folder = Folder.at(str(tmp_path))
    table = reviews(row)
    with pytest.raises(TableError, match=f"row 1: {fault}"):
        append(folder, table)
    assert not folder.find()
    pq.write_table(table, tmp_path / "reviews-1.parquet")
    with pytest.raises(TableError, match=rf"reviews-1.parquet is damaged .*row 1: {fault}"):
        read(folder)


def test_no_review_is_no_file(tmp_path):
    with pytest.raises(TableError, match="there is no review"):
        append(Folder.at(str(tmp_path)), reviews())


def test_a_damaged_file_is_named(tmp_path):
    name = append(Folder.at(str(tmp_path)), reviews(placed(0, "good")))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TableError, match=f"{name} is damaged or of another format"):
        read(Folder.at(str(tmp_path)))


def test_a_file_larger_than_any_is_refused_by_its_listing_and_by_its_footer(tmp_path, monkeypatch):
    folder = Folder.at(str(tmp_path))
    many = reviews(*(placed(n, "good", source_path=f"{n}{'a' * 4000}") for n in range(100)))
    name = append(folder, many)
    size = (tmp_path / name).stat().st_size
    monkeypatch.setattr("patchlake.pipeline.reviews.table.MOST_BYTES", size - 1)
    with pytest.raises(TableError, match="bytes, of reviews at most"):
        read(folder)
    # The paths are compressed well.
    monkeypatch.setattr("patchlake.pipeline.reviews.table.MOST_BYTES", size)
    with pytest.raises(TableError, match="when it is decompressed"):
        read(folder)


def test_other_files_are_passed_over_and_missing_columns_are_not_said(tmp_path):
    (tmp_path / "notes.txt").write_text("ours")
    few = reviews(review("a", "good")).select(["image_id", "verdict", "reviewer", "reviewed_at"])
    pq.write_table(few.append_column("later", pa.array([1])), tmp_path / "reviews-old.parquet")
    found = read(Folder.at(str(tmp_path)))
    assert found.schema.equals(REVIEWS)
    assert found.column("group").to_pylist() == [None]


def test_a_folder_of_images_is_no_reviews_table(tmp_path: Path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "images-0.parquet")
    with pytest.raises(ConfigError, match="is an images table, and cannot be a reviews table"):
        append(Folder.at(str(tmp_path)), reviews(review("a", "good")))
