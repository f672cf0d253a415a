"""The live files of a Delta table, as its log has them. The only place with deltalake."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.storage.folder import hive_keys

if TYPE_CHECKING:
    from deltalake import DeltaTable

# Features of a reader that change nothing of which rows a file has, or are looked for by
# themselves: column mapping by its mode, deletion vectors by whether there are any.
_KNOWN = frozenset(
    {"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview"}
    | {"v2Checkpoint", "vacuumProtocolCheck"}
)
_EXPORT = "export its rows to a folder of plain Parquet files and name that"


_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def read_live(root: str) -> list[str]:
    """Return the names of the files of a table's newest version. Reads the whole log.

    Raises:
        ConfigError: if deltalake is not installed.
        TableError: if the log cannot be read, or needs what we do not do.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise ConfigError(
            f"{root} is a Delta table; install what reads it: pip install 'patchlake[delta]'"
        ) from None
    try:
        table = DeltaTable(root)
        _require_plain(root, table)
        vectors = pa.table(table.deletion_vectors()).num_rows
        actions = pa.table(table.get_add_actions()).to_pylist()
    except (DeltaError, OSError, ValueError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())[:300]
        raise TableError(
            f"the log of the Delta table {root} cannot be read: {reason}; mend it, or {_EXPORT}"
        ) from None
    if vectors:
        raise TableError(
            f"{root}: {vectors} files of the Delta table have deletion vectors, which patchlake "
            f"does not read: remove them with REORG TABLE ... APPLY (PURGE), or {_EXPORT}"
        )
    return [_live(root, action) for action in actions]


def _require_plain(root: str, table: "DeltaTable") -> None:
    features = set(table.protocol().reader_features or ())
    unknown = sorted(features - _KNOWN)
    mode = table.metadata().configuration.get("delta.columnMapping.mode") or "none"
    if mode != "none":
        unknown.append(f"columnMapping (mode {mode})")
    if unknown:
        raise TableError(
            f"{root}: the Delta table needs {', '.join(unknown)} of its readers, which patchlake "
            f"does not do; {_EXPORT}"
        )


def _live(root: str, action: Mapping[str, object]) -> str:
    """Return a file's name, whose folders must say of its partition what the log says."""
    # The log has URIs.
    path = str(action["path"])
    name = unquote(path)
    if not Path(root, name).exists() and Path(root, path).exists():
        name = path
    if "://" in path or path.startswith("/"):
        raise TableError(
            f"{root}: the log of the Delta table names '{path}', outside of its folder; {_EXPORT}"
        )
    partition, keys = action.get("partition") or {}, hive_keys(name)
    assert isinstance(partition, Mapping)
    for key, value in partition.items():
        if not _agree(value, keys.get(str(key))):
            raise TableError(
                f"{root}: the log of the Delta table says {key}={value!r} of '{name}', its folders "
                f"say {keys.get(str(key))!r}; {_EXPORT}"
            )
    return name


def _agree(value: object, text: str | None) -> bool:
    if text is None or value is None:
        return text == _HIVE_NULL
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, dt.datetime):
        # Written in more than one way.
        return text != _HIVE_NULL
    if isinstance(value, dt.date):
        return text == value.isoformat()
    if isinstance(value, str | int):
        return text == str(value) or (value == "" and text == _HIVE_NULL)
    return text != _HIVE_NULL
