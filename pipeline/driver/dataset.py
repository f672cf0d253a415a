"""A score table as an Arrow dataset, whatever it is stored in."""

import re
from datetime import UTC, datetime
from functools import reduce
from operator import and_
from typing import NoReturn

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder, hive_keys
from patchlake.pipeline.storage.stores import Entry

# Parts of a score table, and files of a compacted one.
_FILE = re.compile(r"(.*/)?(part-[0-9a-f]{12}-[0-9a-f]{20}|scores-\d{5,})\.parquet")


def open_table(scores: Folder, version: str | None) -> ds.Dataset:
    """Return the rows of one version; the files are listed now, and read when they are asked for.

    Args:
        scores: A score table, or a compacted one.
        version: Which; None is that of the newest run, or where no run is recorded that of the
            newest file.

    Raises:
        ConfigError: if there is no file of that version.
    """
    versions = parts.versions(scores)
    if not versions:
        raise ConfigError(f"{scores.root} holds no part of a score table")
    if version is None:
        version = _newest(scores, versions)
    if version not in versions:
        raise ConfigError(f"{scores.root} has no version '{version}', but {versions}")
    files = _files(scores, version)
    if not files:
        raise ConfigError(f"version '{version}' of {scores.root} has no part")
    keys = [hive_keys(entry.name) for entry in files]
    every_key = dict.fromkeys(key for some in keys for key in some)
    # The newest file's: columns that a version has gained are null in earlier files.
    newest = max(files, key=_written)
    with scores.open(newest.name) as handle:
        schema = pq.ParquetFile(handle).schema_arrow.remove_metadata()
    for key in every_key:
        schema = schema.append(pa.field(key, pa.string()))
    return ds.FileSystemDataset.from_paths(
        [entry.name for entry in files],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=_filesystem(scores),
        partitions=[_says(some, list(every_key)) for some in keys],
    )


def _filesystem(scores: Folder) -> pafs.FileSystem:
    if scores.is_local:
        return pafs.SubTreeFileSystem(
            scores.path("").removeprefix("file://"), pafs.LocalFileSystem()
        )
    return pafs.PyFileSystem(_Files(scores))


def _files(scores: Folder, version: str) -> list[Entry]:
    return [e for e in scores.find(f"version={version}") if _FILE.fullmatch(e.name)]


def _newest(scores: Folder, versions: list[str]) -> str:
    recorded = [state.record for state in runs.read_runs(scores)]
    for record in reversed(recorded):
        if record.version in versions:
            return record.version
    written = {v: max(map(_written, _files(scores, v)), default=_NEVER) for v in versions}
    return max(written, key=lambda version: written[version])


_NEVER = datetime.min.replace(tzinfo=UTC)


def _written(entry: Entry) -> datetime:
    return entry.modified or _NEVER


def _says(keys: dict[str, str], every_key: list[str]) -> ds.Expression:
    """Return what the path of a file says of all of its rows; a key that it lacks is null."""
    said = []
    for key in every_key:
        value = keys.get(key, NULL_PARTITION)
        field = ds.field(key)
        said.append(field.is_null() if value == NULL_PARTITION else field == value)
    return reduce(and_, said)


class _Files(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """The files of a folder, as Arrow opens them: by our own stores, with their retries."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def get_type_name(self) -> str:
        return "patchlake"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._folder.open(path), mode="r")

    open_input_stream = open_input_file

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        entries = [self._folder.entry(path) for path in paths]
        return [pafs.FileInfo(e.name, pafs.FileType.File, size=e.size) for e in entries]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Files) and other._folder == self._folder

    def __hash__(self) -> int:
        return hash(self._folder)

    def _not_asked(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError("a dataset of scores is only read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _not_asked
    delete_root_dir_contents = delete_file = move = copy_file = _not_asked
    open_output_stream = open_append_stream = _not_asked
