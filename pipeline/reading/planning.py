"""From a listing to fragments: footers are read where neither path nor memory tells enough."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError, FileDamaged, StorageError
from patchlake.pipeline.reading.apart import Call, each
from patchlake.pipeline.reading.footers import Cut, Cuts, cut_file
from patchlake.pipeline.reading.fragments import Fragments, keys_of, path_keys
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import PLAN
from patchlake.pipeline.where.condition import Where

# Fragments of one record batch, and places whose judgement is remembered.
_BATCH, _PLACES = 16_384, 4096


@dataclass(frozen=True)
class Plan:
    """Fragments of the files that were looked at, in (path, first row, group) order.

    `kept` are those of them in which `where` may hold.
    """

    every: Fragments
    kept: Fragments
    # Files of the lake, and those of them that had to be opened: the others are as an earlier plan
    # found them.
    listed: int
    opened: int
    # Whether all files of the lake were looked at.
    is_whole: bool
    # Path -> why the file cannot be read: it has no fragments here.
    damaged: Mapping[str, str]

    def sound(self) -> "Plan":
        """Return the plan of a job that cannot do without any file.

        Raises:
            FileDamaged: if there is one that cannot be read.
        """
        for path, reason in self.damaged.items():
            others = f" (and {len(self.damaged) - 1} more)" if len(self.damaged) > 1 else ""
            raise FileDamaged(
                f"{reason}{others}; mend or remove it, or leave it out with "
                f"""--where "path <> '{path}'\""""
            )
        return self

    def keyed(self, settings_digests: Mapping[str, str], otherwise: str) -> "Plan":
        """Return the plan with keys; `otherwise` is the digest of a group that has none."""
        every = self.every.keyed(settings_digests, otherwise)
        same = self.kept is self.every
        kept = every if same else self.kept.keyed(settings_digests, otherwise)
        return replace(self, every=every, kept=kept)

    @property
    def images(self) -> int:
        """Rows of the kept fragments."""
        return self.kept.images

    @property
    def groups(self) -> list[str]:
        """Groups of the kept fragments."""
        return self.kept.groups


def plan(
    images: Folder,
    settings: Settings,
    *,
    entries: Sequence[Entry] | None = None,
    where: Where | None = None,
    known: Fragments | None = None,
) -> Plan:
    """Return the fragments of the lake, without keys, in (path, first row, group) order.

    Reads footers, and the group column of files that mix groups in a row group.

    Args:
        images: The lake.
        settings: What its columns are called, and rows of a fragment at most.
        entries: Files to look at; without, all of them.
        where: A file that its path rules out is not looked at.
        known: Fragments of an earlier plan with these settings. A file that has not changed since
            is not opened, unless `where` hangs on its columns.

    Raises:
        TableError: if a column is absent, or a path and a group column disagree; of files that
            cannot be read only if no other has rows.
        ConfigError: if `where`, or a setting, has a name that is neither key nor column of any
            file.
    """
    listed = list_tables(images) if entries is None else entries
    wanted = listed
    if where is not None:
        wanted = [
            e for e in listed if where.judge(path_keys(e.name, settings.columns)) is not False
        ]
    old = _unchanged(known or Fragments.of([]), wanted, where)
    have = set(old.table.column("path").unique().to_pylist())
    unseen = [entry for entry in wanted if entry.name not in have]
    tables, verdicts = [old.table], _verdicts(old, where)
    damaged: dict[str, str] = {}
    rows: list[tuple[Entry, Cut]] = []
    absent: list[dict[str, str]] = []
    for entry, found in _cut(images, settings, unseen, where):
        if isinstance(found, FileDamaged):
            damaged[entry.name] = str(found)
            continue
        cuts = found.cuts
        if cuts:
            absent.append(found.absent)
        rows += [(entry, one) for one in cuts]
        verdicts += [one.may_hold for one in cuts]
        if len(rows) >= _BATCH:
            tables.append(_table(rows))
            rows = []
    tables.append(_table(rows))
    _require_names(absent)
    table, may_hold = pa.concat_tables(tables), pa.array(verdicts, pa.bool_())
    if len(old):
        order = pc.sort_indices(table.column("path"))
        table, may_hold = table.take(order), may_hold.take(order)
    every = Fragments(table)
    if damaged and not every:
        raise FileDamaged(next(iter(damaged.values())))
    kept = every.only(pa.chunked_array([may_hold]))
    is_whole = entries is None and where is None and not images.only
    return Plan(every, kept, len(listed), len(unseen), is_whole, damaged)


def _require_names(absent: Sequence[Mapping[str, str]]) -> None:
    """Raise `ConfigError` for a name that none of the files has."""
    for name, message in absent[0].items() if absent else ():
        if all(name in others for others in absent):
            raise ConfigError(message)


def _cut(
    images: Folder, settings: Settings, entries: Sequence[Entry], where: Where | None
) -> Iterator[tuple[Entry, Cuts | FileDamaged]]:
    """Yield each file with its rows by group, or with what is wrong with it."""
    function = partial(_cut_one, images, settings, where)
    calls = [Call(function, entry, images.path(entry.name)) for entry in entries]
    found = each(images, calls)
    return zip(entries, found, strict=True)


def _cut_one(images: Folder, settings: Settings, where: Where | None, entry: Entry) -> Cuts:
    try:
        return cut_file(images, settings, entry, where)
    except StorageError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        reason = f"{images.path(entry.name)} cannot be opened: {error.strerror}"
        raise FileDamaged(reason) from None


def _unchanged(known: Fragments, listed: Sequence[Entry], where: Where | None) -> Fragments:
    """Return the fragments of files as they are listed, of which `where` needs no footer."""
    paths = pa.array([entry.name for entry in listed], pa.string())
    versions = pa.array([entry.version for entry in listed], pa.string())
    places = pc.index_in(known.table.column("path"), value_set=paths)
    now = versions.take(places.combine_chunks())
    same = pc.equal(now, known.table.column("version").combine_chunks()).fill_null(fill_value=False)
    unchanged = known.only(pa.chunked_array([same]))
    if where is None:
        return unchanged
    unsure = {
        path
        for path, verdict in zip(
            unchanged.table.column("path").to_pylist(), _verdicts(unchanged, where), strict=True
        )
        if verdict is None
    }
    asked = pa.array(list(unsure), pa.string())
    return unchanged.only(pc.invert(pc.is_in(unchanged.table.column("path"), value_set=asked)))


def _verdicts(fragments: Fragments, where: Where | None) -> list[bool | None]:
    if where is None:
        return [True] * len(fragments)
    judged = lru_cache(_PLACES)(lambda path, group: where.judge(keys_of(path, group)))
    columns = (fragments.table.column(name).to_pylist() for name in ("path", "group"))
    return list(map(judged, *columns))


def _table(rows: Sequence[tuple[Entry, Cut]]) -> pa.Table:
    columns = {
        "key": [""] * len(rows),
        "path": [entry.name for entry, _ in rows],
        "version": [entry.version for entry, _ in rows],
        **{
            name: [getattr(cut, name) for _, cut in rows]
            for name in PLAN.names
            if name in Cut._fields
        },
    }
    return pa.table(columns, schema=PLAN)
