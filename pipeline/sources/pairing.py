"""Which mask belongs to which image, by the names of the files.

A mask has its image's name, whatever the format: alone, or with a word such as `_mask` before or
behind it, or as a folder of that name with one file. Where a mask's path says a split, its image is
of that split. Two masks for an image are no mask.
"""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import PurePosixPath

from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.words import plain

_WORD = r"(?:mask|masks|gt|label|labels|seg|segmentation|ground_?truth|anno|annotation|annotated)"
_AROUND = re.compile(rf"^{_WORD}[-_. ]+|[-_. ]+{_WORD}$", re.IGNORECASE)
_SHOWN = 5
# Split, group, label and the name without its ending; "" where the path says none.
_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class FileOf:
    """A file of a tree, with the folders that are its group, its label, and its split if any."""

    entry: Entry
    group: tuple[str, ...]
    label: str | None
    split: str | None = None

    @property
    def path(self) -> PurePosixPath:
        """Its name, in parts."""
        return PurePosixPath(self.entry.name)


def pair_beside(
    files: Sequence[FileOf],
) -> tuple[list[FileOf], dict[str, Entry], list[str]]:
    """Tell images from the masks that lie in the same folder (`7.jpg`, `7_label.bmp`).

    Returns:
        The images; image's name -> its mask; and what is to be said.
    """
    names = {(str(one.path.parent), one.path.stem.casefold()) for one in files}
    images: list[FileOf] = []
    masks: dict[tuple[str, str], list[Entry]] = {}
    for one in files:
        stem = one.path.stem.casefold()
        root = _AROUND.sub("", stem)
        place = (str(one.path.parent), root)
        if root != stem and place in names:
            masks.setdefault(place, []).append(one.entry)
        else:
            images.append(one)
    found: dict[str, Entry] = {}
    notes = []
    for one in images:
        own = masks.get((str(one.path.parent), one.path.stem.casefold()), [])
        if len(own) == 1:
            found[one.entry.name] = own[0]
        elif own:
            notes.append(f"{one.entry.name} has {len(own)} masks beside it, and gets none")
    return images, found, _shortened(notes)


def pair_masks(
    images: Sequence[FileOf], masks: Sequence[FileOf], good: AbstractSet[str]
) -> tuple[dict[str, Entry], list[str]]:
    """Pair images with the files of a folder of masks.

    Args:
        images: Of a tree.
        masks: The files below folders of masks.
        good: Labels of images that need no mask, as they are compared.

    Returns:
        Image's name -> its mask; and what is to be said.
    """
    if not masks:
        return {}, []
    by_key: dict[_Key, list[Entry]] = {}
    for mask in masks:
        for key in _keys(mask):
            by_key.setdefault(key, []).append(mask.entry)
    all_masks = {one.entry.name: _of_image(one, by_key) for one in images}
    found = {name: own[0] for name, own in all_masks.items() if len(own) == 1}
    notes = [f"{n} has {len(own)} masks, and gets none" for n, own in all_masks.items() if own[1:]]
    notes = _shortened(notes)
    without = [
        one.entry.name
        for one in images
        if not all_masks[one.entry.name] and one.label and plain(one.label) not in good
    ]
    used = {mask.name for mask in found.values()}
    unpaired = [mask.entry.name for mask in masks if mask.entry.name not in used]
    if without:
        notes.append(f"no mask for {len(without)} defective images: {_some(without)}")
    if unpaired:
        notes.append(f"no image for {len(unpaired)} masks: {_some(unpaired)}")
    return found, notes


def _keys(mask: FileOf) -> Iterable[_Key]:
    """Return the keys under which a mask is found: by its name, or its folder's."""
    place = _place(mask)
    stem = mask.path.stem.casefold()
    folder = mask.path.parent.name.casefold()
    return dict.fromkeys((*place, name) for name in (stem, _AROUND.sub("", stem), folder))


def _of_image(image: FileOf, by_key: dict[_Key, list[Entry]]) -> list[Entry]:
    split, group, label = _place(image)
    stem = image.path.stem.casefold()
    # A folder of masks may have no folders of labels, and lie outside the splits.
    for named in dict.fromkeys((label, "")):
        both = (by_key.get((of, group, named, stem), []) for of in dict.fromkeys((split, "")))
        own = [entry for found in both for entry in found]
        if own:
            return list(dict.fromkeys(own))
    return []


def _place(one: FileOf) -> tuple[str, str, str]:
    group, label = "/".join(one.group).casefold(), (one.label or "").casefold()
    return plain(one.split or ""), group, label


def _shortened(notes: list[str]) -> list[str]:
    rest = len(notes) - _SHOWN
    return notes if rest <= 0 else [*notes[:_SHOWN], f"... and {rest} more images like these"]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
