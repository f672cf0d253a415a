"""What labels and splits mean, however they are written."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.config import ColumnSettings, load_settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.selection import labels_mean, require_splits, select_rows, splits_mean
from patchlake.pipeline.words import plain

DEFAULT = ColumnSettings()


def text(*values: str | None) -> pa.ChunkedArray:
    return pa.chunked_array([list(values)], pa.string())


def set_to(*assignments: str) -> ColumnSettings:
    return load_settings(assignments=[f"columns.{one}" for one in assignments]).columns


def test_words_of_a_set_have_one_order():
    """That of a set is another one in another process, and a model's name covers them."""
    words = {"normal", "iO", "gut", "ok"}
    assert ColumnSettings(good_labels=words).good_labels == ("gut", "iO", "normal", "ok")


@pytest.mark.parametrize(
    ("label", "meaning"),
    [
        *((label, "good") for label in ("good", "Good", "GOOD", " good\n", "OK", "ok", "Normal")),
        *(
            (label, "good") for label in ("NORMAL", "pass", "Pass ", "\uff2f\uff2b")
        ),  # OK, full width
        *((label, "good") for label in ("O.K.", "OK_", "_good", "[ok]", "o k", "Good.", "'pass'")),
        *((label, "good") for label in ("o\u200bk", "\ufeffok", "-ok-", "\u2013 OK")),
        *((label, None) for label in (None, "", "  ", "nan", "NaN", "None", "null", "<NA>")),
        *((label, None) for label in ("unknown", "Unlabelled", "unlabeled", "n/a")),
        *((label, "defect") for label in ("crack", "ko", "NOK", "0", "1", "true", "false")),
        *((label, "defect") for label in ("not good", "good?", "goods", "anomaly", "passé")),
        *((label, "defect") for label in ("!ok", "ok/ng", "~ok", "N.O.K.", "-", ".", "not-ok")),
    ],
)
def test_labels_by_default(label: str | None, meaning: str | None):
    assert labels_mean(text(label), DEFAULT).to_pylist() == [meaning]


@pytest.mark.parametrize(
    ("split", "meaning"),
    [
        *((split, "train") for split in ("train", "Train", " TRAIN", "training")),
        *((split, "train") for split in ("_train", "Train.", "\uff54rain")),
        *((split, "test") for split in ("hold_out", "Hold Out", "test-", "T.E.S.T")),
        *((split, "other") for split in ("-", "test?", "no train")),
        *((split, "test") for split in ("test", "Test", "val", "valid", "Validation", "eval")),
        *((split, "test") for split in ("evaluation", "HOLDOUT", "hold-out", "dev", "testing")),
        *((split, None) for split in (None, "", " ", "nan", "None")),
        *((split, "other") for split in ("fold0", "0", "1", "true", "unlabelled", "trainval")),
    ],
)
def test_splits_by_default(split: str | None, meaning: str | None):
    assert splits_mean(text(split), DEFAULT).to_pylist() == [meaning]


@pytest.mark.parametrize(
    ("setting", "good", "defect"),
    [
        ("good_labels=[0]", "0", "1"),
        ("good_labels=[1]", "1", "0"),
        ("good_labels=0", "0", "1"),
        ("good_labels=[0.0]", "0", "1"),
        ("good_labels=[true]", "true", "false"),
        ("good_labels=[1]", " 1", "-1"),  # of scikit-learn, -1 is an outlier
        ("good_labels=[10]", "10", "1.0"),
        ("good_labels=[1234567]", "1234567", "1.23457e+06"),
        ("good_labels=[1234567.0]", "1234567", "1"),
        ("good_labels=[1234567.25]", "1234567.25", "1234567"),
        ("good_labels=[O.K.]", "ok", "ko"),
        ("good_labels=[_gut-teil_]", "Gut Teil", "gut"),
        ("good_labels=[\uff2f\uff2b]", "ok", "good"),
        ("good_labels=[false]", "false", "true"),
        ("good_labels=[iO, gut]", "GUT", "good"),
        ("good_labels=[none]", "None", "ok"),  # a word that is listed is never no label
    ],
)
def test_labels_that_are_set(setting: str, good: str, defect: str):
    columns = set_to(setting)
    assert labels_mean(text(good, defect, None), columns).to_pylist() == ["good", "defect", None]


def test_a_split_is_in_one_list():
    with pytest.raises(ConfigError, match=r"'val' is in columns\.test_splits too|\['Val'\] is in"):
        set_to("train_splits=[train, Val]")
    with pytest.raises(ConfigError, match=r"hold_out'\] is in columns\.test_splits too"):
        set_to("train_splits=[train, hold_out]")
    columns = set_to("train_splits=[train, val]", "test_splits=[test]")
    assert splits_mean(text("VAL", "holdout"), columns).to_pylist() == ["train", "other"]


WORDS = st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=8)


@given(WORDS, st.sampled_from(["", " ", "\t", "\n ", "\u00a0"]), st.booleans())
def test_case_and_the_spaces_around_change_nothing(word: str, space: str, upper: bool):
    written = f"{space}{word.upper() if upper else word.lower()}{space}"
    for meaning in (labels_mean, splits_mean):
        assert meaning(text(written), DEFAULT) == meaning(text(word), DEFAULT)


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_a_label_is_good_exactly_if_it_is_listed(listed: list[str], word: str):
    columns = ColumnSettings(good_labels=tuple(listed))
    is_listed = plain(word) in {plain(one) for one in listed}
    assert (labels_mean(text(word), columns).to_pylist() == ["good"]) == is_listed


@given(st.lists(st.none() | WORDS, max_size=20), st.sampled_from(["good", "unlabelled"]))
def test_no_row_of_a_test_or_unknown_split_is_taken(splits: list[str | None], selection):
    rows = pa.table({"split": text(*splits), "label": text(*["good"] * len(splits))})
    taken = select_rows(rows, selection, DEFAULT).column("split")
    assert set(splits_mean(taken, DEFAULT).to_pylist()) <= {None, "train"}
    kept = [
        m for m in splits_mean(rows.column("split"), DEFAULT).to_pylist() if m in (None, "train")
    ]
    assert len(taken) == len(kept)


def test_rows_of_a_file_without_labels_are_not_good():
    rows = pa.table({"image_id": ["a"], "split": ["train"]})
    assert len(select_rows(rows, "good", DEFAULT)) == 0
    assert len(select_rows(rows, "unlabelled", DEFAULT)) == 1


def test_a_split_without_a_meaning_is_named_with_the_way_out():
    require_splits(Counter(), DEFAULT, "lake")
    with pytest.raises(ConfigError) as raised:
        require_splits(Counter({"cal": 12, "x": 3}), DEFAULT, "lake")
    said = str(raised.value)
    assert "'cal' in 12 rows, 'x' in 3 rows" in said
    assert "columns.train_splits" in said
    assert "columns.test_splits" in said
    assert "\n" not in said
