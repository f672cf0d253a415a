"""selection: what labels and splits mean, and which rows of a group a job uses.

Compared is what `pipeline.words` makes of what is written. A label is *good*
(`columns.good_labels`), nothing (null, or a word for it), or else a type of defect. A split is to
*train* on (`columns.train_splits`), to *test* on (`columns.test_splits`), nothing, or *other*, with
which no job goes on. Nothing as a split is to train on; as a label it is not, unless the whole
group has none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.words import plain

# `all`: every row (score). `good`: label good, split not test (fit). `unlabelled`: split not test,
# for a group without any label. `none`: every row, but no pixels, for a group without a model.
Selection = Literal["all", "good", "unlabelled", "none"]

# Texts of which nobody can say which one is good.
NUMBERS = frozenset({"0", "1", "true", "false"})
# Values that a message names one by one.
NAMED = 5

# What programs write for a null, and people for a label that they do not know.
_NOTHING = ("", "nan", "none", "null", "n/a", "<na>")
_NO_LABEL = (*_NOTHING, "unknown", "unlabelled", "unlabeled")


def labels_mean(labels: pa.ChunkedArray, columns: ColumnSettings) -> pa.ChunkedArray:
    """Return `good` or `defect` for each label; null where there is none."""
    return _meanings(labels, {"good": columns.good_labels}, "defect", _NO_LABEL)


def splits_mean(splits: pa.ChunkedArray, columns: ColumnSettings) -> pa.ChunkedArray:
    """Return `train`, `test` or `other` for each split; null where there is none."""
    known = {"train": columns.train_splits, "test": columns.test_splits}
    return _meanings(splits, known, "other", _NOTHING)


def select_rows(rows: pa.Table, selection: Selection, columns: ColumnSettings) -> pa.Table:
    """Return the rows that a selection takes."""
    if selection in ("all", "none"):
        return rows
    keep = pa.array(np.ones(len(rows), bool))
    if "split" in rows.column_names:
        split = splits_mean(rows.column("split"), columns)
        keep = pc.and_(keep, pc.fill_null(pc.equal(split, "train"), True))  # noqa: FBT003
    if selection == "good":
        if "label" not in rows.column_names:
            return rows.slice(0, 0)
        label = labels_mean(rows.column("label"), columns)
        keep = pc.and_(keep, pc.fill_null(pc.equal(label, "good"), False))  # noqa: FBT003
    return rows.filter(keep)


def require_splits(splits: Counter[str], columns: ColumnSettings, where: str) -> None:
    """Raise `ConfigError` if there is a split, in so many rows, that means nothing."""
    if splits:
        raise ConfigError(
            f"{where}: column '{columns.split}' says {listed(splits)}, which is neither to train "
            "on nor to test on; name it in columns.train_splits or columns.test_splits (now "
            f"{list(columns.train_splits)} and {list(columns.test_splits)})"
        )


def fault_of_mixed_labels(
    numbers: Counter[str], words: Counter[str], columns: ColumnSettings, *, is_one_good: bool
) -> str:
    """Return what to say of labels that are numbers in some files and words in others, or "".

    Then a number is no type of defect, but a class that a file does not name.

    Args:
        numbers: Those that are numbers in their file, and mean defect.
        words: The other labels.
        columns: Which labels mean good.
        is_one_good: Whether one of the numbers means good: then somebody has said what they are.
    """
    if is_one_good or not numbers or not words:
        return ""
    first = min(numbers)
    return (
        f"column '{columns.label}' holds numbers in some files ({listed(numbers)}) and words in "
        f"others ({listed(words)}); say which number means good, beside the words, for example "
        f"--set columns.good_labels=[good,{first}], or write the numbers as words"
    )


def listed(values: Counter[str]) -> str:
    """Return "'cal' in 12 rows, 'x' in 3 rows"; beyond some values, how many there are besides."""
    named = [f"'{value}' in {rows} rows" for value, rows in values.most_common(NAMED)]
    others = len(values) - len(named)
    return ", ".join(named) + (f", and {others} others" if others else "")


def _meanings(
    values: pa.ChunkedArray,
    words: Mapping[str, Sequence[str]],
    otherwise: str,
    nothing: Sequence[str],
) -> pa.ChunkedArray:
    """Return which list each value is in; a word that somebody has listed is never nothing."""
    text = _compared(values)
    found = pc.if_else(_is_one_of(text, nothing), None, pa.scalar(otherwise))
    for meaning, listed in words.items():
        found = pc.if_else(_is_one_of(text, listed), meaning, found)
    return found


def _is_one_of(text: pa.ChunkedArray, words: Sequence[str]) -> pa.ChunkedArray:
    listed = pa.array(map(plain, words), pa.string())
    # A null is not in the list, and then `if_else` of it is decided as well.
    return pc.is_in(pc.fill_null(text, ""), value_set=listed)


def _compared(values: pa.ChunkedArray) -> pa.ChunkedArray:
    # Of a million labels there are a few: each of those is looked at once.
    coded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    words = pa.array(map(plain, coded.dictionary.to_pylist()), pa.string())
    return pa.chunked_array([words.take(coded.indices)], pa.string())
