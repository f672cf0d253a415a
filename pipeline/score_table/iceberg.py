"""Committed parts in an Iceberg table, one snapshot a run, exactly once however often it is tried.

The parts are not copied: they become data files of the table where they lie, with the hive keys of
their paths as its partition (and, since the files do not hold them, as columns: "Column
Projection" of the Iceberg specification). A part's path is its identity. What is published is the
difference between the parts that there are and the files of the table's current snapshot, in one
commit that fails if that snapshot is not the current one any more. So whatever was killed, or
lost its answer, is made up for or found done by the next run, and two runs at once add nothing
twice.

Where another engine has rewritten files, compacting them, the table's history says which parts are
published (`iceberg_history`): they are not added again. One whose rows are in a rewritten file
cannot be taken out of it, which is refused before anything is removed.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError, PatchlakeError, TableError
from patchlake.pipeline.score_table.iceberg_history import OURS, published, require_removable
from patchlake.pipeline.score_table.parts import every_part
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder, hive_keys
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import SCORES

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

_ATTEMPTS = 5
# Footers are a few KB behind a latency of tens of ms on an object store.
_FOOTERS_AT_ONCE = 16
_CATALOG_NAMESPACE_TABLE = 3


@dataclass(frozen=True)
class Snapshot:
    """What one commit changed: numbers of parts."""

    added: int
    removed: int


def check(name: str) -> None:
    """Raise `ConfigError` if there is no pyiceberg, or no such catalog, before any work is done."""
    _open(name)


def publish(
    name: str, scores: Folder, version: str, leaving: Collection[str] = (), *, run: str
) -> Snapshot | None:
    """Bring a table up to date with the parts of a version; return what changed, None if nothing.

    Parts of other versions are not added, but whatever has left SCORES leaves the table.

    Args:
        name: `catalog.namespace.table`; the catalog is one of pyiceberg's configuration. The table
            is made if it does not exist.
        scores: The score table.
        version: Of the parts that are added.
        leaving: Parts that are about to be removed, relative to SCORES.
        run: Goes into the snapshot's summary.

    Raises:
        ConfigError: if the catalog or the table cannot be used, or parts leave whose rows another
            engine has rewritten.
        PatchlakeError: if others commit to the table all the time.
    """
    from pyiceberg.exceptions import CommitFailedException

    catalog, identifier = _open(name)
    going = set(leaving)
    kept = {scores.path(e.name): e for e in every_part(scores) if e.name not in going}
    wanted = {path: e for path, e in kept.items() if e.name.startswith(f"version={version}/")}
    for _ in range(_ATTEMPTS):
        table = _load(catalog, identifier, scores, [entry.name for entry in wanted.values()])
        if table is None:
            return None
        files = {task.file.file_path: task.file for task in table.scan().plan_files()}
        held = _held(table, files, scores, name)
        require_removable(held - kept.keys() - files.keys(), name)
        gone = [files[path] for path in held & files.keys() if path not in kept]
        fresh = sorted(wanted.keys() - held)
        if not fresh and not gone:
            return None
        added = _data_files(table, scores, {path: wanted[path] for path in fresh})
        try:
            _commit(table, added, gone, {OURS: run, "patchlake.version": version})
        except CommitFailedException:
            continue
        return Snapshot(len(fresh), len(gone))
    raise PatchlakeError(
        f"Iceberg table {name}: others committed {_ATTEMPTS} times in between; "
        "the same command publishes again"
    )


def _open(name: str) -> tuple["Catalog", tuple[str, ...]]:
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError:
        raise ConfigError(
            "score.iceberg_table needs pyiceberg: pip install 'patchlake[iceberg]'"
        ) from None
    parts = tuple(name.split("."))
    if len(parts) < _CATALOG_NAMESPACE_TABLE or not all(parts):
        raise ConfigError(f"score.iceberg_table is {shown(name)}, it takes catalog.namespace.table")
    try:
        return load_catalog(parts[0]), parts[1:]
    except Exception as error:  # noqa: BLE001 - each kind of catalog has its own errors
        raise ConfigError(
            f"Iceberg catalog '{parts[0]}' cannot be opened ({error}); describe it in "
            f".pyiceberg.yaml or in PYICEBERG_CATALOG__{parts[0].upper()}__URI"
        ) from None


def _load(
    catalog: "Catalog", identifier: tuple[str, ...], scores: Folder, names: Sequence[str]
) -> "Table | None":
    """Return the table, which is made for these parts if there is none; None without parts."""
    from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError

    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        if not names:
            return None
        catalog.create_namespace_if_not_exists(identifier[:-1])
        # Another run may have been first.
        with contextlib.suppress(TableAlreadyExistsError):
            _create(catalog, identifier, scores, names)
        table = catalog.load_table(identifier)
    known = {field.name for field in table.spec().fields}
    lacking = sorted({key for name in names for key in hive_keys(name)} - known)
    if lacking:
        raise ConfigError(
            f"Iceberg table {'.'.join(identifier)} has no partition field {lacking}, which folders "
            "of SCORES have; add it, or publish into another table"
        )
    _complete(table)
    # pyiceberg would try a refused commit again on the newer snapshot, which may hold the same
    # files already. What is to be done is worked out anew instead.
    table.metadata.properties["commit.retry.num-retries"] = "0"
    return table


# Columns that the first tables lacked.
_ADDED = {"part_id", "pixel_threshold"}


def _complete(table: "Table") -> None:
    """Add columns of ours, and fields of regions, that a table of an earlier patchlake lacks.

    A table that lacks more than could have been added since is not ours, and is left alone.
    """
    lacking = set(SCORES.names) - set(table.schema().column_names)
    if lacking and lacking <= _ADDED:
        with table.update_schema() as update:
            update.union_by_name(SCORES.remove_metadata())


def _create(
    catalog: "Catalog", identifier: tuple[str, ...], scores: Folder, names: Sequence[str]
) -> None:
    with scores.open(names[0]) as handle:
        schema = pq.read_schema(handle)
    keys = sorted({key for name in names for key in hive_keys(name)})
    twice = [key for key in keys if key in schema.names]
    if twice:
        raise ConfigError(
            f"{scores.path(names[0])}: {twice} are both hive keys and columns; an Iceberg table "
            "cannot hold them twice, leave them out of columns.extra"
        )
    for key in keys:
        schema = schema.append(pa.field(key, pa.string()))
    try:
        with catalog.create_table_transaction(identifier, schema.remove_metadata()) as transaction:
            with transaction.update_spec() as spec:
                for key in keys:
                    spec.add_identity(key)
            mapping = transaction.table_metadata.schema().name_mapping.model_dump_json()
            transaction.set_properties({"schema.name-mapping.default": mapping})
    except (TypeError, ValueError) as error:
        raise TableError(f"{scores.path(names[0])} has columns Iceberg lacks: {error}") from None


def _held(table: "Table", files: Collection[str], scores: Folder, name: str) -> set[str]:
    """Return the paths of the parts whose rows the table holds."""
    prefix = scores.path("version=")
    if all(path.startswith(prefix) for path in files):
        return set(files)
    return published(table, name)


def _data_files(table: "Table", scores: Folder, parts: Mapping[str, Entry]) -> list["DataFile"]:
    def described(path: str) -> "DataFile":
        return _data_file(table, scores, path, parts[path])

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(described, parts))


def _data_file(table: "Table", scores: Folder, path: str, part: Entry) -> "DataFile":
    """Return the entry of one part, as pyiceberg's `add_files` makes it, but for the partition."""
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    with scores.open(part.name) as handle:
        footer = pq.read_metadata(handle)
    unknown = set(footer.schema.to_arrow_schema().names) - set(table.schema().column_names)
    if unknown:
        raise TableError(f"{path} has columns that the Iceberg table lacks: {sorted(unknown)}")
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=footer,
        stats_columns=compute_statistics_plan(
            table.schema(), dict(table.properties) | _bare(footer)
        ),
        parquet_column_mapping=parquet_path_to_id_mapping(table.schema()),
    )
    keys = hive_keys(part.name)
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(*(_value(keys, field.name) for field in table.spec().fields)),
        file_size_in_bytes=part.size,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def _value(keys: Mapping[str, str], name: str) -> str | None:
    value = keys.get(name)
    return None if value == NULL_PARTITION else value


def _bare(footer: pq.FileMetaData) -> dict[str, str]:
    """Return properties that say which columns have no statistics: pyiceberg warns of each."""
    group = footer.row_group(0)
    columns = (group.column(number) for number in range(group.num_columns))
    paths = [c.path_in_schema.replace(".list.", ".") for c in columns if not c.is_stats_set]
    return {f"write.metadata.metrics.column.{path}": "none" for path in paths}


def _commit(
    table: "Table",
    added: Sequence["DataFile"],
    gone: Sequence["DataFile"],
    summary: dict[str, str],
) -> None:
    with table.transaction() as transaction:
        update = transaction.update_snapshot(snapshot_properties=summary)
        # An append is told apart: those who read a table incrementally wait for appends.
        with update.overwrite() if gone else update.fast_append() as producer:
            for file in gone:
                producer.delete_data_file(file)
            for file in added:
                producer.append_data_file(file)
