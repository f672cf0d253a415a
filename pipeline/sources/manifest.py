"""A manifest: a table whose rows name image files, with what is known of them.

Columns are `uri`, and `image_id`, `group`, `split`, `label`, `mask_uri`, `captured_at`, `part_id`
as there are. A header that is nearly one of these is refused, not passed over; other columns are
said. How cells become text and times is in `pipeline.sources.cells`. Two spellings of a path,
`./a.png` and `x/../a.png`, are one file.
"""

import difflib
import os.path
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath

from patchlake.pipeline.errors import ConfigError, StorageError, TableError
from patchlake.pipeline.shown import listed, shown
from patchlake.pipeline.sources.cells import COLUMNS, Row, read_cells
from patchlake.pipeline.sources.hive import with_folders
from patchlake.pipeline.sources.sources import Arrangement, LeftOut, Listing, Places, SourceImage
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.stores import Entry

_ENDINGS = (".csv", ".tsv", ".parquet")
# Headers that are not near by their letters, and mean one of ours.
_MEANT = {"mask": "mask_uri", "mask_path": "mask_uri", "path": "uri", "file": "uri"}
_MEANT |= {"filename": "uri", "file_name": "uri", "image": "uri", "class": "label"}
_NEAR = 0.8
# By its letters `part_id` is near to `plant_id`, `pair_id` and `path_id`, which are other things:
# what is nearly it begins as it does.
_PART, _PART_BEGINS = "part_id", "part"
_MAY_COME_LATER = frozenset({"group", "split", "label"})
_SHOWN = 5


def is_manifest(source: str) -> bool:
    """Return whether a source is a manifest by its name, in any case."""
    return source.lower().endswith(_ENDINGS)


def list_manifest(
    manifest: tuple[Folder, str], arrangement: Arrangement, prefixes: Sequence[str]
) -> Listing:
    """Return the images that a manifest names.

    Args:
        manifest: The folder and name of the file; relative URIs are relative to the folder.
        arrangement: Without a group, it is the manifest's own, or its name.
        prefixes: Where its absolute URIs may point.

    Raises:
        ConfigError: if there is no such file, or an URI points outside the prefixes.
        TableError: if it cannot be read, has no column `uri`, or one that is nearly one of ours,
            or one of ours twice.
    """
    base, file_name = manifest
    source = base.path(file_name)
    keys = arrangement.partitions
    cells = read_cells(base, file_name, keys)
    listing = Listing()
    _require_headers([name for name in cells.headers if name not in keys], source, listing)
    allowed = [base.root, *prefixes]
    places, seen = Places(), set[str]()
    faults: list[str] = []
    for number, (row, at) in enumerate(zip(cells.rows, cells.times, strict=True)):
        uri = _text(row, "uri")
        if uri is None:
            line = f"{source}: row {number} has no uri"
            listing.skipped.append(LeftOut("a row without uri", line))
            continue
        located = _locate(base, [uri, _text(row, "mask_uri")], allowed, (source, prefixes))
        folder, (name, *masks) = located
        image = _image(
            row, (Folder(folder, base.storage), name), arrangement.group or file_name, at
        )
        if image is None:
            listing.skipped.append(LeftOut("missing", f"{shown(uri)[1:-1]}: does not exist"))
        elif places.of(image.uri) in seen:
            line = f"{source}: row {number} names {shown(uri)} again"
            listing.skipped.append(LeftOut("named twice", line))
        else:
            seen.add(places.of(image.uri))
            masked = _with_mask(image, masks, base, faults)
            said = {name for name in _MAY_COME_LATER if _text(row, name)}
            said |= {"group"} if arrangement.group else set()
            unsaid = replace(masked, unsaid=_MAY_COME_LATER - said)
            listing.images.append(with_folders(unsaid, keys, row))
            if _text(row, "captured_at") is not None and at is None:
                faults.append(
                    f"captured_at of {shown(uri)} is {shown(str(row['captured_at']))}, which is no "
                    "time as 2026-11-28T06:00:00Z; its row has none"
                )
    listing.notes.extend(f"{source}: {fault}" for fault in faults[:_SHOWN])
    if len(faults) > _SHOWN:
        listing.notes.append(f"{source}: ... and {len(faults) - _SHOWN} more cells like these")
    return listing


def _require_headers(names: Sequence[str], source: str, listing: Listing) -> None:
    others = []
    for name in names:
        if name in COLUMNS:
            continue
        meant = _meant(name)
        if meant is not None and meant not in names:
            raise TableError(
                f"{source}: column {shown(name)} is not read; if it is '{meant}', rename it, else "
                "give it a name that is not like one of ours"
            )
        others.append(name)
    if "uri" not in names:
        raise TableError(f"{source}: a manifest needs column 'uri', it has {list(names)}")
    if others:
        listing.notes.append(f"{source}: columns that are not read: {listed(others)}")


def _meant(name: str) -> str | None:
    """Return the column of ours that a header is nearly called as, or means; None if none."""
    plain = "_".join(name.strip().lstrip("\ufeff").casefold().replace("-", " ").split())
    if plain in COLUMNS:
        return plain
    others = [column for column in COLUMNS if column != _PART or plain.startswith(_PART_BEGINS)]
    near = difflib.get_close_matches(plain, others, n=1, cutoff=_NEAR)
    return near[0] if near else _MEANT.get(plain)


def _locate(
    base: Folder,
    cells: Sequence[str | None],
    allowed: Sequence[str],
    origin: tuple[str, Sequence[str]],
) -> tuple[str, list[str]]:
    """Return the allowed folder above all URIs, and their names in it. Raises `ConfigError`."""
    uris = [cell for cell in cells if cell is not None]
    paths = [_path(base, uri) for uri in uris]
    if not any(".." in PurePosixPath(path).parts for path in paths):
        for folder in allowed:
            prefix = folder.rstrip("/") + "/"
            if all(path.startswith(prefix) for path in paths):
                return folder, [path.removeprefix(prefix) for path in paths]
    source, prefixes = origin
    named = " with mask ".join(map(shown, uris))
    raise ConfigError(
        f"{source}: {named} is outside {base.root} and of image.uri_prefixes "
        f"{listed(prefixes)}; add its prefix with --set image.uri_prefixes=[...]"
    )


def _path(base: Folder, uri: str) -> str:
    """Return the normalised URI; a relative one is relative to the manifest."""
    if "://" in uri or uri.startswith("/"):
        folder, _, name = uri.rpartition("/")
        inside = Folder(folder or "/", base.storage)
        path = inside.path(name)
        return _straight(path) if inside.is_local else path
    path = base.path(uri)
    if base.is_local:
        return _straight(path)
    within = _named(uri)
    return path if within.startswith("..") else base.path(within)


def _straight(path: str) -> str:
    """Return a path of a disk without `.` and `..`; what a link before `..` leads to is asked."""
    straight = posixpath.normpath(path)
    before, dots, after = path.rpartition("/../")
    if dots:
        led = posixpath.normpath(f"{os.path.realpath(before + dots)}/{after}")
        folders = [os.path.realpath(posixpath.dirname(one)) for one in (straight, led)]
        return straight if folders[0] == folders[1] else led
    return straight


def _text(row: Row, name: str) -> str | None:
    return row.get(name) or None


def _image(
    row: Row, place: tuple[Folder, str], group: str, at: datetime | None
) -> SourceImage | None:
    """Return the image of a row; None if its file does not exist."""
    folder, name = place
    entry = _entry(folder, name)
    if entry is None:
        return None
    return SourceImage(
        image_id=_text(row, "image_id") or _named(str(row["uri"])),
        folder=folder.uri,
        name=entry.name,
        version=entry.version,
        bytes=entry.size,
        group=_text(row, "group") or PurePosixPath(group).stem,
        split=_text(row, "split"),
        label=_text(row, "label"),
        captured_at=at,
        part_id=_text(row, "part_id"),
    )


def _named(uri: str) -> str:
    """Return a path without `.` and `..`: one, however it is spelled."""
    # In an object store, a//b is another name than a/b.
    is_plain = "://" in uri or not {".", ".."} & set(uri.split("/"))
    return uri if is_plain else posixpath.normpath(uri)


def _with_mask(
    image: SourceImage, masks: Sequence[str], base: Folder, faults: list[str]
) -> SourceImage:
    if not masks:
        return image
    entry = _entry(Folder(image.folder, base.storage), masks[0])
    if entry is None:
        faults.append(f"the mask {shown(masks[0])} of {shown(image.name)} does not exist")
        return image
    return replace(image, mask=entry.name, mask_version=entry.version)


def _entry(folder: Folder, name: str) -> Entry | None:
    try:
        return folder.entry(name)
    except StorageError:
        raise
    except (OSError, ValueError):
        # A folder, a name that no file can have, a path below a file.
        return None
