"""Trees of folders: which name is a split, a label, a group, and where the masks are.

    [group/] train|test / good|defect type / file      MVTec AD, MPDD, BTAD
    [group/] good|defect type / file                   without splits
    [group/] [Data/] Images|Masks / Normal|Anomaly / file      VisA

Splits and good labels are the words of `columns.train_splits`, `columns.test_splits` and
`columns.good_labels`, compared as `pipeline.words` does; folders that only say what files are
(`data`, `images`) are passed over. The label is the folder at the depth at which the good ones are;
what lies above it, split aside, is the group. What does not fit is refused, or listed; nothing is
guessed from a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.config import ColumnSettings
from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder
from pipeline.lake.pairing import FileOf, pair_beside, pair_masks
from pipeline.lake.sources import Layout, Listing, SourceImage
from pipeline.lake.stores import Entry
from pipeline.words import plain

_MASKS = {"groundtruth", "gt", "mask", "masks", "segmentation", "segmentations", "annotations"}
_NEUTRAL = {"data", "images", "image", "img", "imgs"}
# Names of folders that nobody gives to good parts.
_BAD = {
    *("bad", "ko", "ng", "nok", "notok", "defect", "defects", "defective", "anomaly", "anomalies"),
    *("anomalous", "abnormal", "fail", "failed", "faulty", "reject", "rejected", "broken"),
}


@dataclass(frozen=True)
class Words:
    """The vocabulary of folders."""

    splits: frozenset[str]
    good: frozenset[str]

    @classmethod
    def of(cls, columns: ColumnSettings) -> "Words":
        """Return that of the settings."""
        splits = (*columns.train_splits, *columns.test_splits)
        return cls(frozenset(map(plain, splits)), frozenset(map(plain, columns.good_labels)))


def guess_layout(root: str, entries: Sequence[Entry], words: Words) -> Layout:
    """Return the layout of a folder by its names.

    Raises:
        ConfigError: if they mean something, and not enough to know which images are good.
    """
    folders = {part for entry in entries for part in PurePosixPath(entry.name).parts[:-1]}
    good = sorted(name for name in folders if plain(name) in words.good)
    if good:
        return "mvtec"
    telling = _BAD | _MASKS | words.splits
    found = sorted(name for name in folders if plain(name) in telling)
    if found:
        raise ConfigError(
            f"{root} has folders {found}, and none whose name says that its images are good "
            f"({', '.join(sorted(words.good))}): set columns.good_labels to the folder's name, or "
            "say --layout folder to take every file as an image without a label"
        )
    return "folder"


def list_folder(folder: Folder, entries: Sequence[Entry], group: str) -> Listing:
    """Return every file of a plain folder as an image without split and label."""
    files = [FileOf(entry, (), None) for entry in entries]
    images, masks, notes = pair_beside(files)
    made = [_image(folder, one, group, None, masks.get(one.entry.name)) for one in images]
    return Listing(made, notes=[f"{folder.root}: {note}" for note in notes])


def list_tree(
    folder: Folder, entries: Sequence[Entry], words: Words, named: tuple[str | None, str]
) -> Listing:
    """Return the images of a tree, with their masks.

    Args:
        folder: The root.
        entries: All its files.
        words: What folders are called.
        named: The group of all images, if there is one; and the group where no folder names it.

    Raises:
        ConfigError: if a path says two splits or two labels, or good images are at two depths.
    """
    places = [_Place.of(entry, words) for entry in entries]
    for place in places:
        place.require_one_split(folder)
        place.require_one_label(folder, words)
    depth = _label_depth(folder, places, words)
    listing = Listing()
    files: list[FileOf] = []
    masks: list[FileOf] = []
    splits: dict[str, str | None] = {}
    has_splits = any(place.split for place in places)
    for place in places:
        one = place.file(depth, has_splits=has_splits)
        if place.is_mask:
            masks.append(one)
        elif (has_splits and place.split is None) or one.label is None:
            listing.skipped.append(
                f"{folder.path(place.entry.name)}: not below a folder of a split and of a label"
                if has_splits
                else f"{folder.path(place.entry.name)}: not below a folder of a label"
            )
        else:
            files.append(one)
            splits[place.entry.name] = place.split
    images, beside, notes = pair_beside(files)
    paired, more = pair_masks(images, masks, words.good)
    listing.notes.extend(f"{folder.root}: {note}" for note in (*notes, *more))
    everyone, otherwise = named
    for one in images:
        own = everyone or "/".join(one.group) or otherwise
        mask = paired.get(one.entry.name) or beside.get(one.entry.name)
        listing.images.append(_image(folder, one, own, splits[one.entry.name], mask))
    return listing


@dataclass(frozen=True)
class _Place:
    """The folders of a file: what they say, and the others."""

    entry: Entry
    split: str | None
    splits: tuple[str, ...]
    is_mask: bool
    # Above the split, and below it (all of them where there is none).
    above: tuple[str, ...]
    below: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry, words: Words) -> "_Place":
        parts = PurePosixPath(entry.name).parts[:-1]
        splits = tuple(part for part in parts if plain(part) in words.splits)
        is_mask = any(plain(part) in _MASKS for part in parts)
        # A mask's folder stands where a split does, or beside it.
        marks = [n for n, p in enumerate(parts) if plain(p) in words.splits or plain(p) in _MASKS]
        first, last = (marks[0], marks[-1]) if marks else (0, -1)
        above, below = (
            tuple(part for part in some if plain(part) not in _NEUTRAL)
            for some in (parts[:first], parts[last + 1 :])
        )
        return cls(entry, splits[0] if splits else None, splits, is_mask, above, below)

    def require_one_split(self, folder: Folder) -> None:
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
        said = [part for part in self.above if plain(part) in words.good]
        said += [part for part in self.below if plain(part) in words.good | _BAD]
        if len(said) > 1 and any(plain(part) in words.good for part in said):
            raise ConfigError(
                f"{folder.path(self.entry.name)} lies below folders {said}: which of them is its "
                "label? Rename the other, set columns.good_labels to the words that mean good "
                "here, or name the files in a manifest with column label"
            )

    def file(self, depth: int, *, has_splits: bool) -> FileOf:
        # Without splits, the depth of a label counts from the root.
        above, below = (self.above, self.below) if has_splits else ((), self.above + self.below)
        label = below[depth] if len(below) > depth else None
        return FileOf(self.entry, (*above, *below[:depth]), label, self.split)


def _label_depth(folder: Folder, places: Sequence[_Place], words: Words) -> int:
    """Return at which depth below the split the labels are: that of the good ones."""
    depths: dict[int, str] = {}
    for place in places:
        if place.is_mask:
            continue
        good = [n for n, part in enumerate(place.below) if plain(part) in words.good]
        if good:
            depths.setdefault(good[0], place.entry.name)
    if len(depths) > 1:
        examples = " and ".join(f"'{name}'" for _, name in sorted(depths.items()))
        raise ConfigError(
            f"{folder.root}: folders that mean good are at several depths, as in {examples}; "
            "ingest each part by itself, or name the files in a manifest"
        )
    return next(iter(depths), 0)


def _image(
    folder: Folder, one: FileOf, group: str, split: str | None, mask: Entry | None
) -> SourceImage:
    entry = one.entry
    return SourceImage(
        image_id=entry.name,
        folder=folder.root,
        name=entry.name,
        version=entry.version,
        bytes=entry.size,
        group=group,
        split=split,
        label=one.label,
        mask=mask.name if mask else None,
        mask_version=mask.version if mask else None,
    )
