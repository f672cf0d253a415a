"""Columns that are passed through to the scores (`columns.extra`): names, and one type each."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.layout import Layout
from patchlake.pipeline.reading.values import unified
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SCORES

# Footers are a few KB behind a latency of tens of ms on an object store.
_FOOTERS_AT_ONCE = 16
# The score table's own key.
_KEYS = ("version",)


def require_names(names: Sequence[str]) -> None:
    """Refuse columns that the score table has already, or twice; engines do not mind capitals.

    Raises:
        ConfigError: with the name.
    """
    ours = {name.casefold() for name in (*SCORES.names, *_KEYS)}
    seen: set[str] = set()
    for name in names:
        if name.casefold() in ours:
            raise ConfigError(
                f"columns.extra names '{name}', which is a column of the score table already; "
                "leave it out, or give it another name in IMAGES"
            )
        if name.casefold() in seen:
            raise ConfigError(f"columns.extra names '{name}' twice; name it once")
        seen.add(name.casefold())


def extra_schema(images: Folder, fragments: Fragments, columns: ColumnSettings) -> pa.Schema:
    """Return what the columns passed through are in the whole table: one type each.

    A file may lack a column, keep it in a narrower type, or leave it to its path. Reads the footer
    of every file, if a column is passed through at all.

    Raises:
        ConfigError: as `require_names`.
        TableError: if no file has a column, or there is no one type for it.
    """
    require_names(columns.extra)
    if not columns.extra or not fragments:
        return pa.schema([])
    files = fragments.table.group_by(["path", "version"]).aggregate([]).sort_by("path").to_pylist()
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        found = list(pool.map(partial(_types, images, columns), files))
    fields = []
    for name in columns.extra:
        kinds = [types[name] for types in found if name in types]
        if not kinds:
            raise TableError(
                f"columns.extra names '{name}', no file of {images.root} has it; "
                f"{files[0]['path']} has: {', '.join(_names(images, files[0]))}"
            )
        try:
            fields.append(pa.field(name, unified(kinds)))
        except ValueError as error:
            raise TableError(
                f"columns.extra: '{name}' of {images.root} is {error}; leave it out"
            ) from None
    return pa.schema(fields)


def _types(images: Folder, columns: ColumnSettings, file: dict[str, str]) -> dict[str, pa.DataType]:
    with images.open(file["path"], file["version"]) as handle:
        schema = pq.read_schema(handle)
    layout = Layout(schema, columns, file["path"], images.path(file["path"]))
    places = [layout.place(name) for name in columns.extra]
    return {p.name: layout.type(p) or pa.string() for p in places if p.is_somewhere}


def _names(images: Folder, file: dict[str, str]) -> list[str]:
    with images.open(file["path"], file["version"]) as handle:
        return list(pq.read_schema(handle).names)
