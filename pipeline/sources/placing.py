"""What the folders of one file say: split, label, group, that it is a mask; and what is left.

A folder `split=train`, `label=ok` or `group=a`, as writers of hive partitions name them, says what
its key says, whatever the word; other folders say it by the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.sources.pairing import FileOf
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder, unescape
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.words import plain

KEYS = ("split", "label", "group")
MASKS = {"groundtruth", "gt", "mask", "masks", "segmentation", "segmentations", "annotations"}
NEUTRAL = {"data", "images", "image", "img", "imgs"}
# Names of folders that nobody gives to good parts.
BAD = {
    *("bad", "ko", "ng", "nok", "notok", "defect", "defects", "defective", "anomaly", "anomalies"),
    *("anomalous", "abnormal", "fail", "failed", "faulty", "reject", "rejected", "broken"),
}


@dataclass(frozen=True)
class Words:
    """The vocabulary of folders."""

    splits: frozenset[str]
    good: frozenset[str]
    # Keys of folders that say where files are to lie, and nothing of their group.
    partitions: frozenset[str] = frozenset()

    @classmethod
    def of(cls, columns: ColumnSettings, partitions: Sequence[str] = ()) -> "Words":
        """Return that of the settings."""
        splits = frozenset(map(plain, (*columns.train_splits, *columns.test_splits)))
        good = frozenset(map(plain, columns.good_labels))
        return cls(splits, good, frozenset(partitions))


@dataclass(frozen=True)
class FilePlace:
    """The folders of a file: what they say, and the others."""

    entry: Entry
    # What folders with a key say: the key -> the values.
    keys: Mapping[str, tuple[str, ...]]
    splits: tuple[str, ...]
    is_mask: bool
    # Above the split, and below it (all of them where there is none).
    above: tuple[str, ...]
    below: tuple[str, ...]
    # Above a folder `label=`, if there is one.
    above_label: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry, words: Words) -> "FilePlace":
        """Return what the path of a file says."""
        parts = PurePosixPath(entry.name).parts[:-1]
        pairs = [key_of(part) or ("", part) for part in parts]
        keys: dict[str, tuple[str, ...]] = {}
        for key, value in pairs:
            if key:
                keys[key] = (*keys.get(key, ()), value)
        is_split = [
            key == "split" or plain(part) in words.splits
            for (key, _), part in zip(pairs, parts, strict=True)
        ]
        is_mask = [plain(part) in MASKS for part in parts]
        # A mask's folder stands where a split does, or beside it.
        marks = [n for n in range(len(parts)) if is_split[n] or is_mask[n]]
        first, last = (marks[0], marks[-1]) if marks else (0, -1)
        label = next((n for n, (key, _) in enumerate(pairs) if key == "label"), 0)
        others = [n for n, (key, _) in enumerate(pairs) if not key and n not in marks]
        others = [n for n in others if plain(parts[n]) not in NEUTRAL]
        return cls(
            entry,
            keys,
            splits=tuple(
                value for (_, value), is_one in zip(pairs, is_split, strict=True) if is_one
            ),
            is_mask=any(is_mask),
            above=tuple(parts[n] for n in others if n < first),
            below=tuple(parts[n] for n in others if n > last),
            above_label=tuple(parts[n] for n in others if n < label),
        )

    @property
    def split(self) -> str | None:
        """The split that a folder says; None where none does, or where its key says null."""
        return _value(self.splits[0]) if self.splits else None

    def require_one_split(self, folder: Folder) -> None:
        """Raise `ConfigError` if the path says two splits, or has a key with two values."""
        for key, values in self.keys.items():
            if len(set(values)) > 1 and key != "split":
                raise ConfigError(
                    f"{folder.path(self.entry.name)} says {key}= more than once, {list(values)}: "
                    f"rename one of the folders, or name the files in a manifest with column {key}"
                )
        if len({plain(split) for split in self.splits}) > 1:
            raise ConfigError(
                f"{folder.path(self.entry.name)} lies below folders {list(self.splits)}: is it to "
                "train on or to test on? Move it, or name the files in a manifest with column split"
            )

    def require_one_label(self, folder: Folder, words: Words) -> None:
        """Raise `ConfigError` if one folder means good, and another one something else or the same.

        Whoever keeps `ng` in `normal` means a product or a setting by `normal`. Above a split, what
        means bad is no label: it may be what the data set is about.
        """
        if self.is_mask:
            return
        said = list(self.keys.get("label", ()))
        said += [part for part in self.above if plain(part) in words.good]
        said += [part for part in self.below if plain(part) in words.good | BAD]
        if len(said) > 1 and any(plain(part) in words.good for part in said):
            raise ConfigError(
                f"{folder.path(self.entry.name)} lies below folders {said}: which of them is its "
                "label? Rename the other, set columns.good_labels to the words that mean good "
                "here, or name the files in a manifest with column label"
            )

    def file(self, depth: int | None, *, has_splits: bool) -> FileOf:
        """Return the file with its group and label, where labels are at a depth below the split.

        Args:
            depth: Of the labels that no key says; None where there are none.
            has_splits: Without splits, the depth of a label counts from the root.
        """
        above, below = (self.above, self.below) if has_splits else ((), self.above + self.below)
        if "label" in self.keys:
            group, label = self.above_label, _value(self.keys["label"][0])
        elif depth is None:
            group, label = (), None
        else:
            group, label = (*above, *below[:depth]), below[depth] if len(below) > depth else None
        named = _value(self.keys.get("group", ("",))[0])
        return FileOf(self.entry, (named,) if named else group, label, self.split)


def without_partitions(parts: Sequence[str], words: Words) -> list[str]:
    """Return folders without those that only say where files are to lie."""
    return [p for p in parts if "=" not in p or p.partition("=")[0] not in words.partitions]


def key_of(part: str) -> tuple[str, str] | None:
    """Return the key and the value of a folder `split=`, `label=` or `group=`; None of another."""
    key, equals, value = part.partition("=")
    known = plain(unescape(key))
    return (known, unescape(value)) if equals and known in KEYS else None


def _value(text: str) -> str | None:
    return None if text in ("", NULL_PARTITION) else text
