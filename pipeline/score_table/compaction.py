"""A second table with the rows of a score table in fewer, larger, sorted files.

A row of the score table is in exactly one file of the compacted one, `scores-NNNNN.parquet` in the
same hive partition. Parts never move between files: a file that is still small takes up more
parts, and is then replaced as a whole, in one atomic put; parts that have left the score table
leave its file the same way. So a reader of the plain folder never meets a row twice.

    _tables/<number>.arrow   which parts each file holds; the newest counts
    _next/<digest>           files of the next table, under the digest of what they hold

All new files are written to `_next`, which no engine reads. Then the state is put, if no other
one has taken its number: that is the commit. Then the files take their places. A kill before the
commit leaves the old table as it was, and what is in `_next` is used by the next start; a kill
after it leaves moves that the next start makes first.
"""

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from patchlake.pipeline.errors import ConfigError, FragmentsFailed, TableError
from patchlake.pipeline.score_table.parquet import TABLE_ORDER, write_sorted
from patchlake.pipeline.score_table.parts import AGAIN
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import arrow_table, parquet_table, reading
from patchlake.pipeline.storage.seals import is_sealed, sealed, unsealed
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import COMPACTED

# Part of every file's digest; raised when the same parts give other bytes.
_FORMAT = 1
_STATES, _NEXT = "_tables", "_next"
_FILE = re.compile(r"scores-\d{5,}\.parquet")
_STATE = re.compile(rf"{_STATES}/\d{{8,}}\.arrow")
# Parts are small, and behind a latency of tens of ms on an object store.
_READS_AT_ONCE = 8


@dataclass(frozen=True)
class CompactedFile:
    """One file: its name, relative to the compacted table, and the parts whose rows it holds."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """Size of the parts together: the file is about as large, or smaller."""
        return sum(size for _, size in self.parts)

    @property
    def digest(self) -> str:
        """Name of the contents."""
        text = json.dumps([_FORMAT, [name for name, _ in self.parts]])
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Table:
    """The state of a compacted table: its files, and the number of its commit (0: none yet)."""

    number: int
    files: Sequence[CompactedFile]


def plan(table: Table, parts: Sequence[Entry], target_bytes: int) -> Table:
    """Return the table that holds these parts, in files of about `target_bytes`.

    Files of half that size and more stay as they are, unless a part of theirs is gone. The same
    table and parts give the same plan; with nothing new it is the table itself, unnumbered.
    """
    held: dict[str, list[CompactedFile]] = defaultdict(list)
    for file in table.files:
        held[_partition(file.name)].append(file)
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for part in parts:
        sizes[_partition(part.name)][part.name] = part.size
    files = [
        file
        for partition in sorted(sizes)
        for file in _fill(partition, held[partition], sizes[partition], target_bytes)
    ]
    return table if files == list(table.files) else Table(table.number + 1, files)


def _fill(
    partition: str, held: Sequence[CompactedFile], sizes: dict[str, int], target_bytes: int
) -> Iterator[CompactedFile]:
    known = {name for file in held for name, _ in file.parts}
    fresh = sorted(sizes.keys() - known, reverse=True)

    def take(parts: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
        total = sum(size for _, size in parts)
        while fresh and (not parts or total + sizes[fresh[-1]] <= target_bytes):
            name = fresh.pop()
            parts.append((name, sizes[name]))
            total += sizes[name]
        return tuple(sorted(parts))

    number = 0
    for file in held:
        number = int(PurePosixPath(file.name).stem.partition("-")[2]) + 1
        parts = [(name, size) for name, size in file.parts if name in sizes]
        is_small = sum(size for _, size in parts) < target_bytes // 2
        filled = take(parts) if is_small else tuple(parts)
        if filled:
            yield CompactedFile(file.name, filled)
    while fresh:
        yield CompactedFile(f"{partition}/scores-{number:05d}.parquet", take([]))
        number += 1


def read(target: Folder) -> Table:
    """Return the committed table."""
    states = _states(target)
    return _load(target, states[-1]) if states else Table(0, [])


def build(scores: Folder, target: Folder, file: CompactedFile) -> None:
    """Write one file of the next table, unless it is there already. Holds the file's rows.

    Raises:
        FragmentsFailed: if a part is gone: somebody is changing the score table.
        TableError: if the parts' columns do not go together.
    """
    staged = f"{_NEXT}/{file.digest}"
    if target.exists(staged):
        return
    names = [name for name, _ in file.parts]
    try:
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            tables = list(pool.map(lambda name: _read_part(scores, name), names))
        rows = pa.concat_tables(tables, promote_options="permissive")
    except FileNotFoundError as error:
        raise FragmentsFailed(
            f"a part of {scores.root} was removed while it was read ({error}); run compact again"
        ) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(
            f"parts of {scores.path(_partition(file.name))} have columns that differ: {error}"
        ) from None
    del tables
    with target.writing(staged) as sink:
        write_sorted(rows, sink, TABLE_ORDER)


def commit(target: Folder, table: Table) -> None:
    """Make this the table. All its new files must have been built.

    Raises:
        ConfigError: if another process has committed since the table was read.
    """
    rows = [(file.name, *part) for file in table.files for part in file.parts]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    state = pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns, COMPACTED, strict=True)],
        schema=COMPACTED,
    )
    # Files that are not in it are removed, so it must be what was written, to the bit.
    state = sealed(state, _STATES)
    sink = io.BytesIO()
    with pa.ipc.new_file(
        sink, state.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(state)
    name = f"{_STATES}/{table.number:08d}.arrow"
    if not target.create(name, sink.getvalue()):
        raise ConfigError(
            f"another compact has changed {target.root} meanwhile ({name} is there); run one at a "
            "time, again"
        )


def settle(target: Folder) -> None:
    """Put the files of the committed table into their places, and remove what is not of it.

    What an earlier start has done is not done again.
    """
    states = _states(target)
    if not states:
        return
    table = _load(target, states[-1])
    before = _load(target, states[-2]) if len(states) > 1 else Table(0, [])
    staged = {PurePosixPath(entry.name).name for entry in target.find(_NEXT)}
    # Rows leave their old file before they come in another one: never twice, at any moment.
    for name in sorted(_data_files(target) - {file.name for file in table.files}):
        target.remove(name)
    for file in rewritten(before, table):
        if file.digest in staged:
            target.move(f"{_NEXT}/{file.digest}", file.name)
    for name in states[:-1]:
        target.remove(name)


def clear(target: Folder) -> None:
    """Remove files that were built for a table that was never committed."""
    target.remove(_NEXT, recursive=True)


def rewritten(before: Table, after: Table) -> list[CompactedFile]:
    """Return the files of a table that the one before does not have with the same contents.

    Those that lose a part come first.
    """
    old = {file.name: set(file.parts) for file in before.files}
    changed = [file for file in after.files if set(file.parts) != old.get(file.name)]
    return sorted(changed, key=lambda file: old.get(file.name, set()) <= set(file.parts))


def _data_files(target: Folder) -> set[str]:
    versions = [name for name in target.folders() if name.startswith("version=")]
    found = (entry.name for version in versions for entry in target.find(version))
    return {name for name in found if _FILE.fullmatch(PurePosixPath(name).name)}


def _read_part(scores: Folder, name: str) -> pa.Table:
    with reading(scores.path(name), AGAIN, TableError):
        return parquet_table(scores.read(name))


def _partition(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _states(target: Folder) -> list[str]:
    found = (entry.name for entry in target.find(_STATES))
    return [name for name in found if _STATE.fullmatch(name)]


def _load(target: Folder, name: str) -> Table:
    then = "it says which files are the table: restore it, or remove the folder and compact again"
    with reading(target.path(name), then, TableError):
        rows = arrow_table(target.read(name), COMPACTED)
        # Tables of before there were seals have none.
        rows = unsealed(rows, _STATES) if is_sealed(rows) else rows
    files: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for file, part, size in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        files[file].append((part, size))
    held = [CompactedFile(file, tuple(parts)) for file, parts in files.items()]
    return Table(int(PurePosixPath(name).stem), held)
