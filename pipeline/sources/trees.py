"""Trees of folders: which name is a split, a label, a group, and where the masks are.

    [group/] train|test / good|defect type / file      MVTec AD, MPDD, BTAD
    [group/] good|defect type / file                   without splits
    [group/] [Data/] Images|Masks / Normal|Anomaly / file      VisA
    [group=.../] [split=.../] [label=.../] file        hive partitions, also in the above

Splits and good labels are the words of `columns.train_splits`, `columns.test_splits` and
`columns.good_labels`, compared as `pipeline.words` does; folders that only say what files are
(`data`, `images`) are passed over. The label is the folder at the depth at which the good ones are;
what lies above it, split aside, is the group. What does not fit is refused, or listed; nothing is
guessed from a file.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import PurePosixPath

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.sources.pairing import FileOf, pair_beside, pair_masks
from patchlake.pipeline.sources.placing import (
    BAD,
    KEYS,
    MASKS,
    FilePlace,
    Words,
    key_of,
    without_partitions,
)
from patchlake.pipeline.sources.sources import Layout, LeftOut, Listing, SourceImage
from patchlake.pipeline.storage.folder import Folder, unescape
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.words import plain

OUTSIDE = "outside the layout"


def guess_layout(root: str, entries: Sequence[Entry], words: Words) -> Layout:
    """Return the layout of a folder by its names.

    Raises:
        ConfigError: if they mean something, and not enough to know which images are good.
    """
    folders = {part for entry in entries for part in PurePosixPath(entry.name).parts[:-1]}
    pairs = list(filter(None, map(key_of, folders)))
    if "label" in dict(pairs) or any(plain(name) in words.good for name in folders):
        _require_whole_words(root, folders, words.splits, "mvtec")
        return "mvtec"
    telling = BAD | MASKS | words.splits
    found = sorted(name for name in folders if plain(name) in telling)
    if found:
        raise ConfigError(
            f"{root} has folders {found}, and none whose name says that its images are good "
            f"({', '.join(sorted(words.good))}): set columns.good_labels to the folder's name, or "
            "say --layout folder to take every file as an image without a label"
        )
    _require_known_keys(root, folders, telling | words.good)
    layout: Layout = "mvtec" if pairs else "folder"
    _require_whole_words(root, folders, telling | words.good, layout)
    return layout


def _require_whole_words(
    root: str, folders: AbstractSet[str], telling: AbstractSet[str], layout: Layout
) -> None:
    """Refuse names such as `train-good` and `test_set`, which would be taken for a part's name."""
    for name in sorted(folders):
        if key_of(name) is not None or plain(name) in telling | BAD | MASKS:
            continue
        held = [word for word in re.split(r"[\W_]+", name) if plain(word) in telling]
        if held:
            raise ConfigError(
                f"{root} has a folder '{name}', whose name holds '{held[0]}' among other words: "
                "what its images are is not known. Rename it to one word, with a folder in it for "
                f"each other one (train/good), or say --layout {layout} to take '{name}' for the "
                "name of a part"
            )


def _require_known_keys(root: str, folders: AbstractSet[str], telling: AbstractSet[str]) -> None:
    for name in sorted(folders):
        _, equals, value = name.partition("=")
        if equals and key_of(name) is None and plain(unescape(value)) in telling:
            raise ConfigError(
                f"{root} has a folder '{name}', whose key is none of {', '.join(KEYS)}: rename it "
                f"to one of these, as label={value}, or say --layout folder to take every file as "
                "an image without a label"
            )


def list_folder(folder: Folder, entries: Sequence[Entry], named: tuple[str | None, str]) -> Listing:
    """Return every file of a plain folder as an image without split and label.

    Args:
        folder: The root.
        entries: All its files.
        named: As in `list_tree`.
    """
    everyone, otherwise = named
    unsaid = frozenset({"split", "label"} if everyone else {"group", "split", "label"})
    files = [FileOf(entry, (), None) for entry in entries]
    images, masks, notes = pair_beside(files)
    group = everyone or otherwise
    made = [
        replace(_image(folder, one, group, masks.get(one.entry.name)), unsaid=unsaid)
        for one in images
    ]
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
    places = [FilePlace.of(entry, words) for entry in entries]
    for place in places:
        place.require_one_split(folder)
        place.require_one_label(folder, words)
    depth = _label_depth(folder, places, words)
    if depth is None and not any(place.keys for place in places):
        depth = 0
    has_labels = depth is not None or any("label" in place.keys for place in places)
    listing = Listing()
    files: list[FileOf] = []
    masks: list[FileOf] = []
    has_splits = any(place.splits for place in places)
    unsaid = frozenset(
        name for name, said in (("split", has_splits), ("label", has_labels)) if not said
    )
    for place in places:
        one = place.file(depth, has_splits=has_splits)
        if place.is_mask:
            masks.append(one)
        elif (has_splits and not place.splits) or (
            has_labels and one.label is None and "label" not in place.keys
        ):
            where = "of a split and of a label" if has_splits else "of a label"
            line = f"{folder.path(place.entry.name)}: not below a folder {where}"
            listing.skipped.append(LeftOut(OUTSIDE, line))
        else:
            files.append(one)
    images, beside, notes = pair_beside(files)
    paired, more = pair_masks(images, masks, words.good)
    listing.notes.extend(f"{folder.root}: {note}" for note in (*notes, *more))
    everyone, otherwise = named
    for one in images:
        own = everyone or "/".join(without_partitions(one.group, words)) or otherwise
        mask = paired.get(one.entry.name) or beside.get(one.entry.name)
        image = _image(folder, one, own, mask)
        is_named = everyone or own != otherwise
        listing.images.append(replace(image, unsaid=unsaid if is_named else unsaid | {"group"}))
    return listing


def _label_depth(folder: Folder, places: Sequence[FilePlace], words: Words) -> int | None:
    """Return at which depth below the split the labels are: that of the good ones, if there are."""
    depths: dict[int, str] = {}
    for place in places:
        if place.is_mask or "label" in place.keys:
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
    if not depths:
        _require_labels_below(folder, places, words)
    return next(iter(depths), None)


def _require_labels_below(folder: Folder, places: Sequence[FilePlace], words: Words) -> None:
    """Raise `ConfigError` where a folder that means good holds the splits (`good/train`)."""
    for place in places:
        for part in place.above:
            if place.split and plain(part) in words.good and not place.is_mask:
                raise ConfigError(
                    f"{folder.path(place.entry.name)}: the folder '{part}' lies above the split "
                    f"'{place.split}', and labels are looked for below it: arrange the folders as "
                    f"{place.split}/{part}, or name the files in a manifest with columns split and "
                    "label"
                )


def _image(folder: Folder, one: FileOf, group: str, mask: Entry | None) -> SourceImage:
    entry = one.entry
    return SourceImage(
        image_id=entry.name,
        folder=folder.root,
        name=entry.name,
        version=entry.version,
        bytes=entry.size,
        group=group,
        split=one.split,
        label=one.label,
        mask=mask.name if mask else None,
        mask_version=mask.version if mask else None,
    )
