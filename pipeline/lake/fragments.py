"""The plan: the images of a lake, cut into fragments, from Parquet footers.

A fragment is the unit of work and of commit: up to `fragment_images` rows of one group in one
file. The cut depends on the files alone, never on `--where`, workers or what is already done, so
that a rerun finds the same fragments under the same keys.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import ColumnSettings
from pipeline.errors import ConfigError
from pipeline.lake.folder import Entry, Folder, hive_keys
from pipeline.lake.footers import Cut, cut_file, text_of
from pipeline.tables import OUTPUT_VERSION, PLAN

T = TypeVar("T")

# Footers are a few KB behind a latency of tens of ms on an object store.
_FOOTERS_AT_ONCE = 16
# Fragments of one record batch of a plan, and of what is made into Python objects at a time.
_BATCH, _READ = 16_384, 4096


@dataclass(frozen=True, order=True)
class Fragment:
    """Rows `start` to `start + images` among the rows of `group` in `row_groups` of `path`."""

    path: str
    row_groups: tuple[int, ...]
    start: int
    group: str
    images: int
    version: str
    key: str = ""

    def keyed(self, settings_digest: str) -> "Fragment":
        """Return the fragment with the key under which these settings' result is stored."""
        file = json.dumps([self.path, self.version])
        settings = json.dumps([self.group, settings_digest, OUTPUT_VERSION])
        return replace(self, key=_key(file, self.row_groups, (self.start, self.images), settings))

    def to_json(self) -> str:
        """Return the fragment as text; `from_json` undoes it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Fragment":
        """Return the fragment that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"row_groups": tuple(fields["row_groups"])})


@dataclass(frozen=True)
class Fragments(Sequence[Fragment]):
    """Many fragments, as columns: some 150 bytes each, where a `Fragment` is 600.

    A sequence of which members are made when they are asked for. `table` has the schema `PLAN`.
    """

    table: pa.Table

    @classmethod
    def of(cls, fragments: Iterable[Fragment]) -> "Fragments":
        """Return the fragments given, in their order."""
        rows = list(fragments)
        columns = {name: [getattr(f, name) for f in rows] for name in PLAN.names}
        return cls(pa.table(columns, schema=PLAN))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Fragment: ...
    @overload
    def __getitem__(self, at: slice) -> "Fragments": ...
    def __getitem__(self, at: int | slice) -> "Fragment | Fragments":
        if isinstance(at, int):
            number = range(len(self))[at]
            return _fragment(self.table.slice(number, 1).to_pylist()[0])
        begin, end, step = at.indices(len(self))
        if step == 1:
            return Fragments(self.table.slice(begin, max(0, end - begin)))
        return Fragments(self.table.take(list(range(begin, end, step))))

    def __iter__(self) -> Iterator[Fragment]:
        for batch in self.table.to_batches(max_chunksize=_READ):
            yield from map(_fragment, batch.to_pylist())

    @property
    def images(self) -> int:
        """Rows of all fragments."""
        return int(pc.sum(self.table.column("images"), min_count=0).as_py())

    @property
    def groups(self) -> list[str]:
        """Their groups, sorted."""
        return sorted(self.table.column("group").unique().to_pylist())

    @property
    def paths(self) -> list[str]:
        """Their files, sorted."""
        return sorted(self.table.column("path").unique().to_pylist())

    @property
    def keys(self) -> pa.ChunkedArray:
        """Their keys."""
        return self.table.column("key")

    def only(self, mask: pa.ChunkedArray) -> "Fragments":
        """Return the fragments for which a boolean column is true, themselves if it always is."""
        return self if pc.all(mask, min_count=0).as_py() else Fragments(self.table.filter(mask))

    def with_keys(self, keys: pa.Array) -> "Fragments":
        """Return the fragments whose key is one of these."""
        return self.only(pc.is_in(self.keys, value_set=keys))

    def without_keys(self, keys: pa.Array) -> "Fragments":
        """Return the fragments whose key is none of these."""
        return self.only(pc.invert(pc.is_in(self.keys, value_set=keys)))

    def of_group(self, group: str) -> "Fragments":
        """Return the fragments of one group."""
        return self.only(pc.equal(self.table.column("group"), group))

    def by_group(self) -> "Fragments":
        """Return the fragments group by group, each in the plan's order."""
        order = pc.sort_indices(self.table.column("group"))
        return Fragments(self.table.take(order))

    def of_path(self, path: str) -> "Fragments":
        """Return the fragments of one file."""
        return self.only(pc.equal(self.table.column("path"), path))

    def where(self, keep: Callable[[Mapping[str, str]], bool]) -> "Fragments":
        """Return the fragments whose partition keys `keep` accepts."""
        judged = lru_cache(_READ)(lambda path, group: keep(keys_of(path, group)))
        masks = [
            np.fromiter(map(judged, *(batch.column(n).to_pylist() for n in _PLACE)), bool)
            for batch in self.table.to_batches(max_chunksize=_BATCH)
        ]
        return self.only(pa.chunked_array(masks, pa.bool_()))

    def keyed(self, digests: Mapping[str, str], otherwise: str) -> "Fragments":
        """Return the fragments with keys; the digest is the group's, or `otherwise`.

        Equal to `Fragment.keyed` of each, at some 3 s a million.
        """
        settings = lru_cache(_READ)(
            lambda group: json.dumps([group, digests.get(group, otherwise), OUTPUT_VERSION])
        )
        file = lru_cache(_READ)(lambda path, version: json.dumps([path, version]))
        keys = []
        for batch in self.table.to_batches(max_chunksize=_BATCH):
            columns = (batch.column(name).to_pylist() for name in _IDENTITY)
            keys.append(
                pa.array(
                    _key(file(path, version), row_groups, (start, images), settings(group))
                    for path, version, row_groups, start, images, group in zip(
                        *columns, strict=True
                    )
                )
            )
        column = pa.chunked_array(keys, pa.string())
        at = PLAN.get_field_index("key")
        return Fragments(self.table.set_column(at, PLAN.field("key"), column))


_PLACE = ("path", "group")
_IDENTITY = ("path", "version", "row_groups", "start", "images", "group")


def list_tables(images: Folder) -> list[Entry]:
    """Return the Parquet files of a lake, by path; folders that begin with _ or . are not data.

    Raises:
        ConfigError: if there is none.
    """
    entries = [
        entry
        for entry in images.find()
        if entry.name.endswith(".parquet")
        and not any(part.startswith(("_", ".")) for part in entry.name.split("/"))
    ]
    if not entries:
        raise ConfigError(f"{images.root} holds no Parquet file; run `patchlake ingest` first")
    return entries


def plan(
    images: Folder, columns: ColumnSettings, fragment_images: int, *, entries: Sequence[Entry] = ()
) -> Fragments:
    """Return all fragments of the lake, without keys, in (path, first row, group) order.

    Reads footers, and the group column of files that mix groups in a row group.

    Raises:
        TableError: if a column is absent, or a path and a group column disagree.
    """
    batches: list[pa.RecordBatch] = []
    rows: list[tuple[Entry, Cut]] = []
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:

        def cut(entry: Entry) -> tuple[Entry, Future[list[Cut]]]:
            return entry, pool.submit(cut_file, images, columns, fragment_images, entry)

        for entry, cuts in _ahead(map(cut, entries or list_tables(images)), 4 * _FOOTERS_AT_ONCE):
            rows += [(entry, one) for one in cuts.result()]
            if len(rows) >= _BATCH:
                batches.append(_batch(rows))
                rows = []
    return Fragments(pa.Table.from_batches([*batches, _batch(rows)], PLAN))


def group_rows(
    file: pq.ParquetFile, fragment: Fragment, columns: ColumnSettings, names: Sequence[str]
) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
    """Yield a fragment's rows in file order, with their row numbers in the file.

    Reads small batches: a row group of somebody else's table may be a gigabyte.
    """
    wanted = [*dict.fromkeys([*names, columns.group])]
    passed = 0
    for row_group in fragment.row_groups:
        first = sum(file.metadata.row_group(i).num_rows for i in range(row_group))
        for read in file.iter_batches(batch_size=64, row_groups=[row_group], columns=wanted):
            batch = _without_views(read)
            numbers = pa.array(range(first, first + batch.num_rows), pa.int64())
            first += batch.num_rows
            mine = pc.equal(text_of(batch.column(columns.group)), fragment.group)
            numbers, rows = numbers.filter(mine), batch.filter(mine)
            begin = min(max(fragment.start - passed, 0), rows.num_rows)
            end = min(max(fragment.start + fragment.images - passed, 0), rows.num_rows)
            passed += rows.num_rows
            if end > begin:
                yield numbers[begin:end], rows.slice(begin, end - begin).select(names)
            if passed >= fragment.start + fragment.images:
                return


def keys_of(path: str, group: str) -> dict[str, str]:
    """Return the names that `--where` may use, with a fragment's values."""
    return {**hive_keys(path), "group": group, "path": path}


def _key(file: str, row_groups: Sequence[int], rows: tuple[int, int], settings: str) -> str:
    """Return the key of rows (start, images) of a file; `file` and `settings` are JSON lists."""
    start, images = rows
    text = f"{file[:-1]}, {list(row_groups)}, {start}, {images}, {settings[1:]}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _fragment(row: dict[str, object]) -> Fragment:
    fields: dict[str, object] = row | {"row_groups": tuple(row["row_groups"])}  # type: ignore[arg-type]
    return Fragment(**fields)  # type: ignore[arg-type]


def _ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yield the items, drawn `count` ahead: futures of them all would be more than the plan."""
    drawn: deque[T] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) > count:
            yield drawn.popleft()
    yield from drawn


def _batch(rows: Sequence[tuple[Entry, Cut]]) -> pa.RecordBatch:
    columns = {
        "key": [""] * len(rows),
        "path": [entry.name for entry, _ in rows],
        "version": [entry.version for entry, _ in rows],
        **{name: [getattr(cut, name) for _, cut in rows] for name in Cut._fields},
    }
    return pa.RecordBatch.from_pydict(columns, schema=PLAN)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return string and binary views as plain ones: Arrow 26 cannot filter views."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.RecordBatch.from_arrays(
        [column.cast(plain.get(column.type, column.type)) for column in batch.columns],
        names=batch.schema.names,
    )
