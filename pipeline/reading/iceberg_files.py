"""The live files of an Iceberg table whose folder is at hand, without its catalog."""

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from patchlake.pipeline.errors import ConfigError, TableError

if TYPE_CHECKING:
    from pyiceberg.table import StaticTable

_METADATA = re.compile(r"v?(\d+)[^/]*\.metadata\.json(\.gz)?")
# Defaults of columns, deletion vectors and row lineage came with format 3.
_NEWEST_FORMAT = 2
_EXPORT = "export its rows to a folder of plain Parquet files and name that"


def read_live(root: str) -> list[str]:
    """Return the names of the files of the newest snapshot, by the newest metadata file.

    Raises:
        ConfigError: if pyiceberg is not installed.
        TableError: if the metadata cannot be read, or needs what we do not do.
    """
    newest = _newest(root)
    try:
        from pyiceberg.table import StaticTable
    except ImportError:
        raise ConfigError(
            f"{root} is an Iceberg table; install what reads it: pip install 'patchlake[iceberg]'"
        ) from None
    try:
        table = StaticTable.from_metadata(newest)
        _require_plain(root, table)
        tasks = list(table.scan().plan_files())
    except TableError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes of pyiceberg
        reason = " ".join(str(error).split())[:300]
        raise TableError(
            f"the metadata of the Iceberg table {root} cannot be read ({newest}): {reason}; "
            f"mend it, or {_EXPORT}"
        ) from None
    deletes = sum(bool(task.delete_files) for task in tasks)
    if deletes:
        raise TableError(
            f"{root}: {deletes} files of the Iceberg table have delete files, which patchlake does "
            f"not read: rewrite its data files, or {_EXPORT}"
        )
    return [_name(root, task.file.file_path) for task in tasks]


def _newest(root: str) -> str:
    numbered: dict[int, list[str]] = {}
    for name in sorted(os.listdir(f"{root}/metadata")):
        matched = _METADATA.fullmatch(name)
        if matched:
            numbered.setdefault(int(matched[1]), []).append(name)
    if not numbered:
        raise TableError(f"{root} is an Iceberg table without a metadata file; {_EXPORT}")
    names = numbered[max(numbered)]
    if len(names) > 1:
        raise TableError(
            f"{root}: the Iceberg table has {len(names)} newest metadata files, {names[0]} and "
            f"{names[1]}: its catalog alone knows which one is true; {_EXPORT}"
        )
    return f"{root}/metadata/{names[0]}"


def _require_plain(root: str, table: "StaticTable") -> None:
    metadata = table.metadata
    if metadata.format_version > _NEWEST_FORMAT:
        raise TableError(
            f"{root}: the Iceberg table is of format {metadata.format_version}, patchlake reads "
            f"up to {_NEWEST_FORMAT}; {_EXPORT}"
        )
    location = _path(metadata.location)
    if os.path.realpath(location) != os.path.realpath(root):
        raise TableError(
            f"{root}: the Iceberg table says that it lies at {metadata.location}, and its files "
            f"are named by that; name that folder, or {_EXPORT}"
        )
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for schema in metadata.schemas:
        for name in schema.column_names:
            number = schema.find_field(name).field_id
            if names.setdefault(number, name) != name or numbers.setdefault(name, number) != number:
                raise TableError(
                    f"{root}: column '{name}' of the Iceberg table was renamed, or is another "
                    f"than earlier files have under that name; {_EXPORT}"
                )


def _name(root: str, uri: str) -> str:
    relative = os.path.relpath(os.path.realpath(_path(uri)), os.path.realpath(root))
    if relative.startswith(".."):
        raise TableError(f"{root}: the Iceberg table names {uri}, outside of its folder; {_EXPORT}")
    return relative


def _path(uri: str) -> str:
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        raise TableError(f"the Iceberg table names {uri}, which is not on this disk; {_EXPORT}")
    return uri if not parsed.scheme else uri.removeprefix("file:").replace("//", "/", 1)
