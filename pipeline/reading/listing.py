"""What IMAGES is made of: its Parquet files, of a table format those that its log knows."""

import logging
import re
from functools import lru_cache
from pathlib import Path

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.reading import apart
from patchlake.pipeline.reading.formats import live_files
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.storage.stores import Entry

log = logging.getLogger("patchlake")

# A listing is made more than once, and told of once.
_TOLD, _SHOWN = 16, 10
# Spark, Dask and Hive write these; of each any case, as Windows and cameras have it.
_PARQUET = re.compile(r"[^/]\.(parquet|parq|pq)$", re.IGNORECASE)
_NAMES = "*.parquet, *.parq or *.pq"


def open_lake(uri: str, storage: StorageSettings) -> Folder:
    """Return the folder of an images table; of one Parquet file, its folder, but only that file.

    So its rows have the same keys and `source_path` as when its folder is scored.
    """
    # Somebody is going to look into its files.
    apart.prepare()
    folder = Folder.at(uri, storage)
    if not is_parquet(folder.root):
        return folder
    parent, name = split_uri(folder.root, storage)
    try:
        parent.entry(name)
    except FileNotFoundError:
        # Spark gives folders such names.
        return folder
    return parent.narrowed(name)


def is_parquet(name: str) -> bool:
    """Return whether a file is Parquet by its name."""
    return _PARQUET.search(name) is not None


def list_tables(images: Folder) -> list[Entry]:
    """Return the Parquet files of a lake, by path; folders that begin with _ or . are not data.

    Of a Delta or Iceberg table, the files that are live.

    Raises:
        ConfigError: if there is none.
        TableError: if it is a table of a format whose files cannot be told.
    """
    entries = images.find()
    visible = [entry for entry in entries if _is_data(entry.name)]
    tables = live_files(images, entries, [e for e in visible if is_parquet(e.name)])
    if images.only:
        tables = [entry for entry in tables if entry.name == images.only]
    if not tables:
        raise ConfigError(_why_none(images, [entry.name for entry in visible]))
    _tell_left_out(tuple(images.left_out()))
    others = [entry.name for entry in visible if not is_parquet(entry.name)]
    if others and not images.only:
        _tell_others(images.root, len(others), others[0])
    return tables


def _is_data(name: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in name.split("/"))


def _why_none(images: Folder, others: list[str]) -> str:
    if images.is_local and not Path(images.root).exists():
        return (
            f"{images.root} does not exist: IMAGES is a folder of Parquet files, or one, as "
            "`patchlake ingest` makes it"
        )
    if images.is_local and not Path(images.root).is_dir():
        return f"{images.root} is no folder, and not named {_NAMES}; rename it, if it is Parquet"
    message = f"{images.root} holds no file named {_NAMES}"
    if others:
        message += f", only {len(others)} others, the first is {others[0]}"
    return f"{message}; run `patchlake ingest` first"


@lru_cache(_TOLD)
def _tell_left_out(lines: tuple[str, ...]) -> None:
    for line in lines[:_SHOWN]:
        log.warning("%s", line)
    if len(lines) > _SHOWN:
        log.warning("... and %d more that are left out", len(lines) - _SHOWN)


@lru_cache(_TOLD)
def _tell_others(root: str, count: int, first: str) -> None:
    log.info(
        "%s: %d files that are not Parquet by their names are passed over, the first is %s",
        root,
        count,
        first,
    )
