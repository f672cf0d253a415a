"""What a fit takes of a lake, and what it says of the rest."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import ImageSettings, Settings, load_settings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.plan import plan_fragments
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.survey import Survey, survey
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.where.condition import read_where

Row = tuple[str, str | None, str | None]
# Files whose labels are written as numbers.
NUMBERS = {
    "named": pa.int64(),
    "numbers": pa.int64(),
    "floats": pa.float64(),
    "truths": pa.bool_(),
    "coded": pa.dictionary(pa.int32(), pa.int64()),
}


def surveyed(
    folder: Path, where: str | None = None, settings: Settings | None = None, **files: list[Row]
) -> Survey:
    for name, rows in files.items():
        groups, splits, labels = zip(*rows, strict=True)
        columns = {
            "image_id": [str(n) for n in range(len(rows))],
            "image": pa.array([b""] * len(rows), pa.binary()),
            "group": groups,
            "split": pa.array(splits, pa.string()),
            "label": pa.array(labels, pa.string()),
        }
        table = pa.table(columns)
        if name in NUMBERS:
            numbers = table.column("label").cast(pa.int64())
            numbers = (
                numbers.dictionary_encode() if name == "coded" else numbers.cast(NUMBERS[name])
            )
            table = table.set_column(table.column_names.index("label"), "label", numbers)
        if name == "named":
            classes = {"info": {"features": {"label": {"names": ["crack", "good"]}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(classes)})
        pq.write_table(
            table.drop_columns("label") if name == "bare" else table, folder / f"{name}.parquet"
        )
    lake, settings = Folder(str(folder)), settings or Settings()
    rule = read_where(where)
    source = Source(lake, settings.columns, ImageSettings(), Geometry((8, 8), None), rule)
    return survey(source, plan_fragments(lake, settings, where).kept)


def test_a_group_has_a_line_that_counts_every_row(tmp_path: Path):
    rows: list[Row] = [("tile", "train", "good")] * 5 + [("tile", "Train", "OK")] * 2
    rows += [("tile", "test", "good")] * 3 + [("tile", "train", "crack")] * 2
    rows += [("tile", "train", None)] * 4 + [("tile", "test", None), ("cloth", None, None)]
    found = surveyed(tmp_path, a=rows)
    assert found.selections == {"cloth": "unlabelled", "tile": "good"}
    assert found.lines() == [
        "group 'cloth': 1 images without a label",
        "group 'tile': 7 good images (label 'good', 'OK') of split 'train', 'Train'; not used: "
        "4 of split 'test', 2 of label 'crack', 4 without a label",
    ]


def test_a_file_without_labels_does_not_make_its_group_one_without(tmp_path: Path):
    found = surveyed(tmp_path, a=[("tile", "train", "good")], bare=[("tile", "train", "x")])
    assert found.selections == {"tile": "good"}
    assert found.lines()[0].endswith("not used: 1 without a label")


def test_where_keeps_rows_without_a_label_of_a_group_that_has_some(tmp_path: Path):
    rows: list[Row] = [("tile", "train", "good"), ("tile", "val", None), ("cloth", "val", None)]
    found = surveyed(tmp_path, "split != 'train'", a=rows)
    assert found.selections == {"cloth": "unlabelled", "tile": "good"}


def test_many_groups_have_one_line(tmp_path: Path):
    rows: list[Row] = [(f"g{n:02}", "train", f"ok{' ' * (n % 7)}") for n in range(12)]
    (line,) = surveyed(tmp_path, a=[*rows, ("g00", "val", "crack")]).lines()
    assert line.startswith("12 groups: 12 good images (label 'ok'")
    assert line.endswith(" and 2 others) of split 'train'; not used: 1 of split 'val'")


def test_a_split_that_where_leaves_out_needs_no_meaning(tmp_path: Path):
    rows: list[Row] = [("tile", "train", "good"), ("tile", "cal", "good")]
    with pytest.raises(ConfigError, match="says 'cal' in 1 rows"):
        surveyed(tmp_path, a=rows).require_splits("lake")
    surveyed(tmp_path, "split != 'cal'", a=rows).require_splits("lake")


def test_labels_of_which_none_is_good_are_named_with_the_likely_way_out(tmp_path: Path):
    rows: list[Row] = [("tile", "train", "fine")] * 3 + [("tile", "test", "crack")] * 9
    said = surveyed(tmp_path, a=[*rows, ("cloth", None, None)]).without_good()
    assert "of the labels of group 'tile' none means good: 'crack' in 9 rows, 'fine' in 3" in said
    assert "--set columns.good_labels=[fine]" in said
    assert "\n" not in said
    assert not surveyed(tmp_path, a=[*rows, ("tile", "test", "Good")]).without_good()


def test_a_column_that_a_setting_names_and_no_file_has_is_refused(tmp_path: Path):
    table = pa.table({"image_id": ["1"], "image": [b""], "group": ["a"], "quality": ["bad"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns("quality"), tmp_path / "b.parquet")
    lake = Folder(str(tmp_path))

    def read(**columns: str) -> Survey:
        settings = load_settings(flags={"columns": columns})
        fragments = plan_fragments(lake, settings, None).kept
        source = Source(lake, settings.columns, ImageSettings(), Geometry((8, 8), None))
        found = survey(source, fragments)
        found.require_named(source, fragments)
        return found

    read(label="quality")
    read(label="")
    told = r"columns\.label is 'qualty', and no file has such a column: .* has image_id, image"
    with pytest.raises(ConfigError, match=told):
        read(label="qualty")
    with pytest.raises(ConfigError, match=r"columns\.image_id is 'serial', and no file"):
        read(image_id="serial")


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet", "test"),
        ("train.parquet", "Validation.parquet", "Validation"),
        ("training/0.parquet", "val/0.parquet", "val"),
        ("a/TRAIN-1.parquet", "a/holdout-1.snappy.parquet", "holdout"),
    ],
)
def test_a_split_may_be_the_name_of_a_file_or_a_folder(
    train: str, test: str, split: str, tmp_path: Path
):
    table = pa.table({"image_id": ["1"], "image": [b""], "group": ["a"], "label": ["good"]})
    for name in (train, test, "others/test_line-1.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / name)
    lake, settings = Folder(str(tmp_path)), Settings()
    source = Source(lake, settings.columns, ImageSettings(), Geometry((8, 8), None))
    [line] = survey(source, plan_fragments(lake, settings, None).kept).lines()
    assert line.startswith("group 'a': 2 good images")
    assert line.endswith(f"not used: 1 of split '{split}'")


def test_a_path_that_says_two_splits_is_refused(tmp_path: Path):
    table = pa.table({"image_id": ["1"], "image": [b""], "group": ["a"]})
    (tmp_path / "train").mkdir()
    pq.write_table(table, tmp_path / "train" / "test.parquet")
    pq.write_table(table.append_column("split", [["train"]]), tmp_path / "train" / "val.parquet")
    lake, settings = Folder(str(tmp_path)), Settings()
    source = Source(lake, settings.columns, ImageSettings(), Geometry((8, 8), None))
    fragments = plan_fragments(lake, settings, None).kept
    with pytest.raises(TableError, match=r"says the split 'train' and 'test'"):
        survey(source, fragments)
    (tmp_path / "train" / "test.parquet").unlink()
    [line] = survey(source, plan_fragments(lake, settings, None).kept).lines()
    assert line == "group 'a': 1 images without a label of split 'train'"


@pytest.mark.parametrize("words", ["named", "text"])
@pytest.mark.parametrize("numbers", ["numbers", "floats", "truths", "coded"])
def test_numbers_in_some_files_and_words_in_others_are_refused(
    numbers: str, words: str, tmp_path: Path
):
    good = "1" if words == "named" else "good"
    files = {words: [("tile", "train", good)], numbers: [("tile", "test", one) for one in "001"]}
    zero = "false" if numbers == "truths" else "0"
    told = surveyed(tmp_path, **files).of_two_kinds()
    assert told.startswith(f"group 'tile': column 'label' holds numbers in some files ('{zero}' in")
    assert "words in others ('good' in 1 rows); say which number means good" in told
    assert f"--set columns.good_labels=[good,{zero}]" in told
    said = load_settings(flags={"columns": {"good_labels": ["good", zero]}})
    found = surveyed(tmp_path, settings=said, **files)
    assert found.of_two_kinds() == found.without_good() == ""


def test_digits_that_are_text_are_words(tmp_path: Path):
    rows: list[Row] = [("tile", "train", "good"), ("tile", "test", "0"), ("tile", "test", "7")]
    found = surveyed(tmp_path, a=rows, numbers=[("cloth", "train", "0"), ("tile", "train", None)])
    assert found.of_two_kinds() == ""
    assert "'0' in 1 rows" in found.without_good()


def test_groups_that_differ_in_capitals_or_spaces_alone_are_said(tmp_path: Path):
    names = ("tile", " Tile", "tile 1", "tile  1", "tiles", "til\u00e9")
    found = surveyed(tmp_path, a=[(name, "train", "good") for name in names])
    said = "differ in capitals or spaces alone, and are 2 groups with a model each"
    assert sorted(found.alike()) == [
        f"groups ' Tile', 'tile' {said}",
        f"groups 'tile  1', 'tile 1' {said}",
    ]
