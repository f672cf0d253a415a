"""Fragments: the images of a lake, cut into pieces.

A fragment is the unit of work and of commit: up to `fragment_images` rows of one group in one
file. The cut depends on the files alone, never on `--where`, workers or what is already done, so
that a rerun finds the same fragments under the same keys.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder, hive_keys, is_hashed
from patchlake.pipeline.storage.owned import read_arrow
from patchlake.pipeline.tables import OUTPUT_VERSION, PLAN

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

    @classmethod
    def read(cls, folder: Folder, name: str) -> "Fragments":
        """Return what `write` wrote. Raises `FileNotFoundError`, and `TableError` of any other."""
        then = "the command of that run writes it again; or restore it"
        return cls(read_arrow(folder, name, PLAN, then))

    def write(self, folder: Folder, name: str) -> None:
        """Write a file of Arrow's IPC format: of a million fragments 150 MB, a batch at a time."""
        schema = self.table.schema
        with folder.writing(name) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(self.table)

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
        return Fragments(self.table.take(pa.array(range(begin, end, step), pa.int64())))

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
            made = (
                _key(file(path, version), row_groups, (start, images), settings(group))
                for path, version, row_groups, start, images, group in zip(*columns, strict=True)
            )
            keys.append(pa.array(made, pa.string()))
        column = pa.chunked_array(keys, pa.string())
        at = PLAN.get_field_index("key")
        return Fragments(self.table.set_column(at, PLAN.field("key"), column))


_IDENTITY = ("path", "version", "row_groups", "start", "images", "group")


def keys_of(path: str, group: str) -> dict[str, str]:
    """Return the names of `--where` that have one value in a fragment, with their values."""
    keys = hive_keys(path)
    if "g" in keys:
        # The folder of a long name is no name.
        keys["g"] = group
    return {**keys, "group": group, "path": path}


def path_keys(path: str, columns: ColumnSettings) -> dict[str, str]:
    """Return the same of a file: its group only if its folders tell."""
    keys = hive_keys(path)
    named = keys.get(columns.group)
    if is_hashed(keys.get("g", "")):
        del keys["g"]
    keys.pop("group", None)
    group = keys.get("g") if named in (None, NULL_PARTITION) else named
    if group is not None and not _is_canonical(group):
        # A typed column of the file may spell it otherwise, and is what the group is called by.
        group = None
    return {**keys, **({} if group is None else {"group": group}), "path": path}


def _is_canonical(text: str) -> bool:
    """Return whether a value that a path spells so is spelled so as a number, a date or a bool."""
    if not _TYPED.match(text):
        return True
    return bool(_CANONICAL.fullmatch(text))


# What may be the text of a number, a time or a bool; those that are as `reading.values` has them.
_TYPED = re.compile(r"\s*[-+.]?\d|\s*(true|false|nan|inf)", re.IGNORECASE)
_CANONICAL = re.compile(r"0|-?[1-9]\d*|\d{4}-\d\d-\d\d|true|false")


def _key(file: str, row_groups: Sequence[int], rows: tuple[int, int], settings: str) -> str:
    """Return the key of rows (start, images) of a file; `file` and `settings` are JSON lists."""
    start, images = rows
    text = f"{file[:-1]}, {list(row_groups)}, {start}, {images}, {settings[1:]}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _fragment(row: dict[str, object]) -> Fragment:
    fields: dict[str, object] = row | {"row_groups": tuple(row["row_groups"])}  # type: ignore[arg-type]
    return Fragment(**fields)  # type: ignore[arg-type]
