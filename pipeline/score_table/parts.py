"""The commit of a scoring run: the part file is the marker.

A fragment writes its heatmaps first and its part last, in one atomic put, under a name that is a
function of its input and settings. What exists is done; whoever repeats a fragment writes the
same bytes under the same name, so reruns, retries and late writers are harmless.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.score_table.parquet import PART_ORDER, write_sorted
from patchlake.pipeline.storage.folder import Folder, unescape
from patchlake.pipeline.storage.owned import reading
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import SCORES

_SOURCE = "_source.json"
# What to do about a part that is not what was written.
AGAIN = "remove it, and the same `patchlake score` scores its images again"
_SHOWN = 300
_SCORED_AT = SCORES.field("scored_at").type
# Two columns are a few KB behind a latency of tens of ms on an object store.
_READ_AT_ONCE = 16
# Anything else in the folder is somebody else's.
_KEY_AND_END = "0" * 20 + ".parquet"
_PART = re.compile(r"part-[0-9a-f]{12}-[0-9a-f]{20}\.parquet")


def part_name(version: str, fragment: Fragment, columns: Iterable[str] = SCORES.names) -> str:
    """Return the name of a fragment's part, relative to SCORES; hive partitions are kept.

    A key that is a column of the part as well, or the score table's own key, becomes `source_KEY`:
    what a reader makes of folders hides columns in some engines, and ends others.
    """
    taken = {"version", *(name.casefold() for name in columns)}
    partitions = []
    for part in PurePosixPath(fragment.path).parts[:-1]:
        key, equals, value = part.partition("=")
        while equals and unescape(key).casefold() in taken:
            key = f"source_{key}"
        if equals:
            taken.add(unescape(key).casefold())
            partitions.append(f"{key}={value}")
    file = f"part-{_file_digest(fragment.path)}-{fragment.key}.parquet"
    return "/".join([f"version={version}", *partitions, file])


def put_part(scores: Folder, version: str, fragment: Fragment, table: pa.Table) -> None:
    """Commit a fragment. Its heatmaps must be in place."""
    sink = io.BytesIO()
    write_sorted(table, sink, PART_ORDER)
    scores.write(part_name(version, fragment, table.column_names), sink.getvalue())


# Names that are Python objects at a time.
_NAMES = 16_384


@dataclass(frozen=True, eq=False)
class CommittedParts(Mapping[str, str]):
    """Key -> part name of all that is done for a version: columns, some 130 bytes a part."""

    # `names` are in their order.
    sorted_keys: pa.StringArray
    names: pa.StringArray

    @classmethod
    def of(cls, names: Iterable[str]) -> "CommittedParts":
        """Return the parts of these names."""
        remaining = iter(names)
        pieces: list[pa.StringArray] = [pa.array([], pa.string())]
        while some := list(islice(remaining, _NAMES)):
            pieces.append(pa.array(some, pa.string()))
        column = pa.concat_arrays(pieces)
        keys = pc.utf8_slice_codeunits(column, -len(_KEY_AND_END), -len(".parquet"))
        order = pc.sort_indices(keys)
        return cls(keys.take(order), column.take(order))

    def __getitem__(self, key: str) -> str:
        at = int(np.searchsorted(self._sorted, key.encode()))
        if at == len(self) or self._sorted[at] != key.encode():
            raise KeyError(key)
        return str(self.names[at].as_py())

    def __iter__(self) -> Iterator[str]:
        return (key.as_py() for key in self.sorted_keys)

    def __len__(self) -> int:
        return len(self.sorted_keys)

    def of_plan(self, fragments: Fragments) -> pa.StringArray:
        """Return the names of those fragments' parts that are done, in the fragments' order."""
        places = pc.index_in(fragments.keys, value_set=self.sorted_keys).drop_null()
        return self.names.take(places.combine_chunks())

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.array(self.sorted_keys.to_numpy(zero_copy_only=False), "S20")


def committed(scores: Folder, version: str) -> CommittedParts:
    """Return all that is done for a version. One listing."""
    names = scores.names(f"version={version}")
    return CommittedParts.of(n for n in names if _PART.fullmatch(n.rpartition("/")[2]))


def count_statuses(scores: Folder, names: Sequence[str], scored_at: datetime) -> Counter[str]:
    """Return the rows of some parts that a run has written, by status. Reads two columns."""

    def count(name: str) -> Counter[str]:
        with reading(scores.path(name), AGAIN), scores.open(name) as handle:
            rows = pq.ParquetFile(handle).read(columns=["status", "scored_at"])
        own = rows.filter(pc.equal(rows.column("scored_at"), pa.scalar(scored_at, _SCORED_AT)))
        return Counter(own.column("status").to_pylist())

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return sum(pool.map(count, names), Counter())


def count_rows(scores: Folder, names: Sequence[str]) -> int:
    """Return the rows of some parts. Reads their footers."""

    def count(name: str) -> int:
        with scores.open(name) as handle:
            return int(pq.ParquetFile(handle).metadata.num_rows)

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return sum(pool.map(count, names))


def versions(scores: Folder) -> list[str]:
    """Return the versions that a score table has parts of."""
    folders = (name.partition("=") for name in scores.folders())
    return [value for key, _, value in folders if key == "version"]


def every_part(scores: Folder) -> list[Entry]:
    """Return the parts of all versions, by name. One listing a version; heatmaps are not listed."""
    found = (entry for v in versions(scores) for entry in scores.find(f"version={v}"))
    return [entry for entry in found if _PART.fullmatch(PurePosixPath(entry.name).name)]


def paths_of(names: Iterable[str], fragments: Fragments) -> list[str]:
    """Return those files of a plan that some parts are of."""
    digests = {_digest_of(name) for name in names}
    return [path for path in fragments.paths if _file_digest(path) in digests]


def superseded(fragments: Fragments, done: CommittedParts, expired: pa.StringArray) -> list[str]:
    """Return parts of older contents of the files in the plan whose new ones are all done.

    Args:
        fragments: All fragments of the files in question.
        done: What is committed now for one version, from `committed`.
        expired: Keys of that version that need no part any more.
    """
    unplanned = done.names.filter(pc.invert(pc.is_in(done.sorted_keys, value_set=fragments.keys)))
    if not len(unplanned):
        return []
    files = {_file_digest(path): path for path in fragments.paths}
    finished = pa.concat_arrays([done.sorted_keys, expired])
    leaving = []
    for name in unplanned.to_pylist():
        path = files.get(_digest_of(name))
        if path is not None and _is_done(fragments, path, finished):
            leaving.append(name)
    return leaving


def remove(scores: Folder, names: Iterable[str]) -> None:
    """Remove parts and their heatmaps; what is gone already is fine.

    The part is last: while it is there, whoever comes after a kill finds what is left to remove.
    """
    for name in names:
        heatmaps.remove(scores, key_of(name))
        scores.remove(name)


def _is_done(fragments: Fragments, path: str, finished: pa.StringArray) -> bool:
    current = fragments.of_path(path).keys
    return bool(pc.all(pc.is_in(current, value_set=finished)).as_py())


def bind_source(scores: Folder, images: Folder) -> None:
    """Record which IMAGES a score table belongs to, or refuse another one.

    Raises:
        ConfigError: if the table was begun with other images: their rows would share names.
    """
    if not scores.create(_SOURCE, images.root.encode()):
        require_source(scores, images)


def require_source(scores: Folder, images: Folder) -> None:
    """Refuse a score table that was begun with other images; one that is not there is fine.

    Raises:
        ConfigError: as `bind_source`.
    """
    then = f"restore it; for scores of {images.root} it holds that path and nothing else"
    try:
        with reading(scores.path(_SOURCE), then):
            found = scores.read(_SOURCE).decode()
    except FileNotFoundError:
        return
    if found != images.root:
        raise ConfigError(
            f"{scores.root} holds scores of {_shown(found)}, not of {images.root}; choose another "
            f"folder ({_SOURCE} says so)"
        )


def source_of(scores: Folder) -> str | None:
    """Return the root of what a table was made of: IMAGES, or of a compacted one, SCORES.

    None where it does not say.
    """
    then = "restore it; it holds the path of what the table was made of, and nothing else"
    try:
        with reading(scores.path(_SOURCE), then):
            return scores.read(_SOURCE).decode()
    except FileNotFoundError:
        return None


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _digest_of(name: str) -> str:
    """Return the digest of its file in a part's name."""
    return name.rpartition("/")[2].split("-")[1]


def _file_digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:12]


def key_of(name: str) -> str:
    """Return the key in a part's name."""
    return name[-len(_KEY_AND_END) : -len(".parquet")]
