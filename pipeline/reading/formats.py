"""Folders that are tables of a format: which of their files are live, only their log knows.

A Delta or Iceberg table keeps the files of earlier versions, a Hudi or Lance table rows that its
Parquet files alone do not tell of. The first two are read with their own libraries, in a process
apart; what those cannot tell us of rows (deletion vectors, renamed columns) is refused by name.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from patchlake.pipeline.errors import StorageError, TableError
from patchlake.pipeline.reading import delta, iceberg_files
from patchlake.pipeline.reading.apart import Call, apart
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.stores import Entry

log = logging.getLogger("patchlake")

Format = Literal["Delta", "Iceberg", "Hudi", "Lance"]

# What marks a table, below its root.
_MARKS: Mapping[Format, re.Pattern[str]] = {
    "Delta": re.compile(r"_delta_log/"),
    "Iceberg": re.compile(r"metadata/(version-hint\.text|v?\d+[^/]*\.metadata\.json(\.gz)?)$"),
    "Hudi": re.compile(r"\.hoodie/"),
    "Lance": re.compile(r"_versions/[^/]*\.manifest$"),
}
_MARKED = re.compile("|".join(f"(?:^|/)(?={mark.pattern})" for mark in _MARKS.values()))
# Levels above IMAGES that are looked at: partitions, and the folder of the data.
_ABOVE = 8
_EXPORT = "export its rows to a folder of plain Parquet files and name that"


def live_files(
    images: Folder, entries: Sequence[Entry], candidates: Sequence[Entry]
) -> list[Entry]:
    """Return those of the candidates that are live in the tables they belong to, or in none.

    Args:
        images: The lake.
        entries: All its files.
        candidates: Its Parquet files.

    Raises:
        TableError: if that cannot be told, or the folder lies within such a table.
    """
    _require_no_table_above(images)
    left = list(candidates)
    for prefix, kind in sorted(_tables(entry.name for entry in entries).items()):
        where = images.path(prefix.rstrip("/"))
        inside = {e.name.removeprefix(prefix): e for e in left if e.name.startswith(prefix)}
        live = _live(images, kind, where, inside)
        log.info("%s is a %s table, in which %d files are live", where, kind, len(live))
        dead = {e.name for e in inside.values()} - {e.name for e in live}
        if images.only in dead:
            raise TableError(
                f"{images.path(images.only)} is not a live file of the {kind} table {where}: "
                "name the table"
            )
        left = [entry for entry in left if entry.name not in dead]
    return left


def _tables(names: Iterable[str]) -> dict[str, Format]:
    """Return the root of each table ("" or "a/b/"), and what it is."""
    found: dict[str, Format] = {}
    for name in names:
        marked = _MARKED.search(name)
        if marked is None:
            continue
        for kind, mark in _MARKS.items():
            if mark.match(name, marked.end()):
                found.setdefault(name[: marked.end()], kind)
    return found


def _live(images: Folder, kind: Format, where: str, inside: Mapping[str, Entry]) -> list[Entry]:
    if kind in ("Hudi", "Lance"):
        raise TableError(f"{where} is a {kind} table, which patchlake does not read; {_EXPORT}")
    if not images.is_local:
        raise TableError(f"{where} is a {kind} table, which is read on a disk only; {_EXPORT}")
    read = delta.read_live if kind == "Delta" else iceberg_files.read_live
    live = []
    for name in apart(images, Call(read, where, where)):
        entry = inside.get(name)
        if entry is None:
            raise TableError(
                f"{where}: the log of the {kind} table names '{name}', which is no Parquet file "
                f"there; {_EXPORT}"
            )
        live.append(entry)
    return live


def _require_no_table_above(images: Folder) -> None:
    for parent in _parents(images):
        kind = _kind_of(parent)
        if kind is not None:
            raise TableError(
                f"{images.root} lies in the {kind} table {parent.root}, whose log alone knows "
                f"which files are live; name {parent.root}, and its part with --where"
            )


def _parents(images: Folder) -> Iterator[Folder]:
    """Yield the folders above; in an object store only those above partitions and `data`."""
    folder = images
    for _ in range(_ABOVE):
        root = folder.root.rstrip("/")
        above, _, name = root.rpartition("/")
        if not above or above.endswith(("/", ":")):
            return
        if not images.is_local and not ("=" in name or name == "data"):
            return
        folder = Folder.at(above, images.storage)
        yield folder


def _kind_of(folder: Folder) -> Format | None:
    """Return what table a folder is the root of."""
    if not folder.is_local:
        try:
            below = set(folder.folders())
        except (StorageError, OSError):
            # Who may read a part of a bucket may not list all of it.
            return None
        names = [f"{name}/" for name in below & {"_delta_log", ".hoodie"}]
        if "metadata" in below:
            names += list(folder.names("metadata"))
    else:
        names = list(_marks_on_disk(folder.root))
    return next(iter(_tables(names).values()), None) if names else None


def _marks_on_disk(root: str) -> Iterator[str]:
    for name in ("_delta_log", ".hoodie"):
        if os.path.isdir(f"{root}/{name}"):
            yield f"{name}/"
    for name in ("metadata", "_versions"):
        if os.path.isdir(f"{root}/{name}"):
            yield from (f"{name}/{file}" for file in os.listdir(f"{root}/{name}"))
