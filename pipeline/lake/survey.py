"""survey: what a lake's labels and splits are, and which rows of each group a fit takes.

Reads three narrow columns of every file, and counts; nothing is embedded before that is judged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError, FileDamaged
from patchlake.pipeline.lake.selection import (
    NAMED,
    NUMBERS,
    Selection,
    fault_of_mixed_labels,
    labels_mean,
    listed,
    require_splits,
    splits_mean,
)
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.apart import Call, each
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.named import is_of_numbers, read_absent, read_named

_ASKED = ("group", "split", "label")
_KEYS = (*_ASKED, "of_numbers")
# Groups that have a line each.
_GROUPS_NAMED = 10


@dataclass(frozen=True)
class Survey:
    """How many rows there are of each (group, split, label), with what these mean."""

    # Columns group, split, label, of_numbers, rows, split_means, label_means; one row each
    # combination of the first four. `of_numbers`: the label is a number without a name in its file.
    counts: pa.Table
    columns: ColumnSettings
    groups: tuple[str, ...]
    # Of groups whose rows have no label here, but others of the same files have.
    labelled_elsewhere: frozenset[str] = frozenset()

    @property
    def selections(self) -> dict[str, Selection]:
        """Return which rows of each group a fit takes: good ones, or all where none has a label."""
        labelled = self.counts.filter(self.counts.column("label_means").is_valid())
        known = {*labelled.column("group").to_pylist(), *self.labelled_elsewhere}
        bare = set(self.counts.column("group").to_pylist()) - known
        return {group: "unlabelled" if group in bare else "good" for group in self.groups}

    def require_splits(self, where: str) -> None:
        """Raise `ConfigError` if a split is neither to train on nor to test on."""
        unknown = self.counts.filter(pc.equal(self.counts.column("split_means"), "other"))
        require_splits(_rows_of(unknown, "split"), self.columns, where)

    def require_named(self, source: Source, fragments: Fragments) -> None:
        """Raise `ConfigError` if a setting names a column that no file has, and all would be good.

        Opens files until one has it; a column that has a value somewhere is looked for in none.
        """
        silent = [n for n in ("split", "label") if not self.counts.column(n).drop_null()]
        silent = [name for name in silent if name in self.columns.renamed]
        files = fragments.table.group_by(["path", "version"]).aggregate([])
        places = zip(*(files.column(name).to_pylist() for name in ("path", "version")), strict=True)
        faults: dict[str, str] = {}
        for path, version in places if silent else ():
            faults = read_absent(source.images, self.columns, path, version, silent)
            silent = [name for name in silent if f"columns.{name}" in faults]
            if not silent:
                return
        for fault in faults.values():
            raise ConfigError(fault)

    def without_good(self) -> str:
        """Return what is wrong with groups that have labels, none of which means good, or ""."""
        means = self.counts.column("label_means")
        good = self.counts.filter(pc.equal(means, "good")).column("group").to_pylist()
        bad = self.counts.filter(pc.equal(means, "defect"))
        bad = bad.filter(
            pc.invert(pc.is_in(bad.column("group"), value_set=pa.array(good, pa.string())))
        )
        groups = sorted(set(bad.column("group").to_pylist()))
        if not groups:
            return ""
        first = bad.filter(pc.equal(bad.column("group"), groups[0]))
        of_training = first.filter(pc.invert(_is(first, "split_means", "test")))
        ((label, _),) = _rows_of(of_training if len(of_training) else first, "label").most_common(1)
        others = f" (and of {len(groups) - 1} other groups)" if groups[1:] else ""
        numbers = set(first.column("label").to_pylist()) <= NUMBERS
        way = "say which one does" if numbers else "name those that do"
        return (
            f"of the labels of group '{groups[0]}'{others} none means good: "
            f"{listed(_rows_of(first, 'label'))}; columns.good_labels is "
            f"{list(self.columns.good_labels)}: {way}, for example --set "
            f"columns.good_labels=[{label}], or leave the group out with --where"
        )

    def alike(self) -> list[str]:
        """Return what to say of groups whose names differ in capitals or spaces alone."""
        names: dict[str, list[str]] = {}
        for group in self.groups:
            names.setdefault(" ".join(group.casefold().split()), []).append(group)
        return [
            f"groups {', '.join(map(repr, same))} differ in capitals or spaces alone, and are "
            f"{len(same)} groups with a model each"
            for same in names.values()
            if len(same) > 1
        ]

    def of_two_kinds(self) -> str:
        """Return what is wrong with a group's labels, if it is `fault_of_mixed_labels`, or ""."""
        labelled = self.counts.filter(self.counts.column("label_means").is_valid())
        is_number = labelled.column("of_numbers")
        numbers, words = labelled.filter(is_number), labelled.filter(pc.invert(is_number))
        both = set(numbers.column("group").to_pylist()) & set(words.column("group").to_pylist())
        for group in sorted(both):
            of_numbers = _of_group(numbers, group)
            fault = fault_of_mixed_labels(
                _rows_of(of_numbers.filter(_is(of_numbers, "label_means", "defect")), "label"),
                _rows_of(_of_group(words, group), "label"),
                self.columns,
                is_one_good="good" in of_numbers.column("label_means").to_pylist(),
            )
            if fault:
                return f"group '{group}': {fault}"
        return ""

    def lines(self) -> list[str]:
        """Return what is taken and what is not: a line for each group, or one for all of many."""
        selections = self.selections
        if len(selections) <= _GROUPS_NAMED:
            of = partial(_of_group, self.counts)
            return [f"group '{g}': {_what_is_taken(of(g), {g: s})}" for g, s in selections.items()]
        return [f"{len(selections)} groups: {_what_is_taken(self.counts, selections)}"]


def survey(source: Source, fragments: Fragments) -> Survey:
    """Return the labels and splits of the rows that these fragments hold and `--where` keeps.

    Reads a file once; where `--where` hangs on columns, each fragment.
    """
    if source.where is None:
        files = fragments.table.group_by(["path", "version"]).aggregate([]).to_pylist()
        counted = _of_files(source, files)
    else:
        counted = [_counted(rows) for rows in source.each_names(fragments)]
    counts = _summed(pa.concat_tables([_counted(_EMPTY), *counted]))
    groups = fragments.groups
    of_groups = pa.array(groups, pa.string())
    counts = counts.filter(pc.is_in(counts.column("group"), value_set=of_groups))
    counts = counts.sort_by([(name, "ascending") for name in _KEYS])
    columns = source.columns
    for name, meaning in (("split", splits_mean), ("label", labels_mean)):
        counts = counts.append_column(f"{name}_means", meaning(counts.column(name), columns))
    found = Survey(counts, columns, tuple(groups))
    if source.where is None:
        return found
    # Rows that `--where` keeps may have no label where the rest of their group has.
    bare = pa.array([g for g, s in found.selections.items() if s == "unlabelled"], pa.string())
    bare_ones = fragments.only(pc.is_in(fragments.table.column("group"), value_set=bare))
    if not bare_ones:
        return found
    whole = survey(replace(source, where=None), bare_ones).selections
    return replace(found, labelled_elsewhere=frozenset(g for g, s in whole.items() if s == "good"))


_EMPTY = pa.table({name: pa.array([], pa.string()) for name in _ASKED})


def _of_files(source: Source, files: Iterable[Mapping[str, str]]) -> list[pa.Table]:
    """Return the counts of each file. Raises `FileDamaged` where one cannot be read."""
    images, counted = source.images, []
    read = partial(_of_file, source)
    for found in each(images, [Call(read, file, images.path(file["path"])) for file in files]):
        if isinstance(found, FileDamaged):
            raise found
        counted.append(found)
    return counted


def _of_file(source: Source, place: Mapping[str, str]) -> pa.Table:
    path, version = place["path"], place["version"]
    return _counted(read_named(source.images, source.columns, path, version, _ASKED))


def _counted(rows: pa.Table) -> pa.Table:
    absent = pa.nulls(len(rows), pa.string())
    held = set(rows.column_names)
    texts = {n: rows.column(n).cast(pa.string()) if n in held else absent for n in _ASKED}
    of_numbers = pa.repeat("label" in held and is_of_numbers(rows, "label"), len(rows))
    return _summed(pa.table({**texts, "of_numbers": of_numbers, "rows": pa.repeat(1, len(rows))}))


def _summed(counts: pa.Table) -> pa.Table:
    summed = counts.group_by(list(_KEYS)).aggregate([("rows", "sum")])
    return summed.rename_columns([*_KEYS, "rows"])


def _of_group(counts: pa.Table, group: str) -> pa.Table:
    return counts.filter(_is(counts, "group", group))


def _is(counts: pa.Table, name: str, value: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(counts.column(name), value), False)  # noqa: FBT003


def _what_is_taken(counts: pa.Table, selections: Mapping[str, Selection]) -> str:
    taken: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    unused: dict[str, Counter[str]] = {"of split": Counter(), "of label": Counter()}
    unlabelled = 0
    for row in counts.to_pylist():
        rows, of_good = row["rows"], selections[row["group"]] == "good"
        if row["split_means"] in ("test", "other"):
            unused["of split"][row["split"]] += rows
        elif row["label_means"] == "defect":
            unused["of label"][row["label"]] += rows
        elif of_good and row["label_means"] is None:
            unlabelled += rows
        else:
            taken["good images" if of_good else "images without a label"] += rows
            splits[_named(row["split"])] += rows
            if of_good:
                labels[_named(row["label"])] += rows
    left = [f"{_values(found, what)}" for what, found in unused.items() if found]
    left += [f"{unlabelled} without a label"] if unlabelled else []
    with_labels = f" (label {_names(labels)})" if labels else ""
    used = " and ".join(f"{n} {what}" for what, n in sorted(taken.items())) or "0 good images"
    of_splits = f" of split {_names(splits)}" if set(splits) - {_named(None)} else ""
    return f"{used}{with_labels}{of_splits}" + (f"; not used: {', '.join(left)}" if left else "")


def _values(found: Counter[str], what: str) -> str:
    """Return "195 of split 'test', 3 of split 'val'", the most frequent ones by name."""
    named = [f"{n} {what} '{value}'" for value, n in found.most_common(NAMED)]
    rest = sum(found.values()) - sum(n for _, n in found.most_common(NAMED))
    return ", ".join([*named, *([f"{rest} {what}s not listed here"] if rest else [])])


def _names(found: Counter[str]) -> str:
    named = [value for value, _ in found.most_common(NAMED)]
    others = len(found) - len(named)
    return ", ".join(named) + (f" and {others} others" if others else "")


def _named(value: str | None) -> str:
    return "null" if value is None else f"'{value}'"


def _rows_of(counts: pa.Table, name: str) -> Counter[str]:
    """Return how many rows each value of a column has."""
    found: Counter[str] = Counter()
    for row in counts.to_pylist():
        found[str(row[name])] += row["rows"]
    return found
