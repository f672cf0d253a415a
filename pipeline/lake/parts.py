"""The commit of a scoring run: the part file is the marker.

A fragment writes its heatmaps first and its part last, in one atomic put, under a name that is a
function of its input and settings. What exists is done; whoever repeats a fragment writes the
same bytes under the same name, so reruns, retries and late writers are harmless.
"""

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment

_SOURCE = "_source.json"
# Anything else in the folder is somebody else's.
_PART = re.compile(r"part-[0-9a-f]{12}-[0-9a-f]{20}\.parquet")


def part_name(version: str, fragment: Fragment) -> str:
    """Return the name of a fragment's part, relative to SCORES; hive partitions are kept."""
    partitions = [part for part in PurePosixPath(fragment.path).parts[:-1] if "=" in part]
    if any(part.startswith("version=") for part in partitions):
        raise ConfigError(
            f"{fragment.path}: the partition key 'version' is the score table's own; rename it"
        )
    file = f"part-{_file_digest(fragment.path)}-{fragment.key}.parquet"
    return "/".join([f"version={version}", *partitions, file])


def heatmap_name(fragment: Fragment, source_row: int) -> str:
    """Return the name of one image's heatmap, relative to SCORES."""
    return f"_heatmaps/{fragment.key}/{source_row}.png"


def put_part(scores: Folder, version: str, fragment: Fragment, table: pa.Table) -> None:
    """Commit a fragment. Its heatmaps must be in place."""
    sink = io.BytesIO()
    # store_schema keeps the time zone and nullability for Arrow readers; statistics prune.
    pq.write_table(table, sink, compression="zstd")
    scores.write(part_name(version, fragment), sink.getvalue())


def committed(scores: Folder, version: str) -> dict[str, str]:
    """Return key -> part name of all that is done for a version. One listing."""
    names = (entry.name for entry in scores.find(f"version={version}"))
    return {_key_of(name): name for name in names if _PART.fullmatch(PurePosixPath(name).name)}


def remove_superseded(
    scores: Folder, fragments: Iterable[Fragment], done: dict[str, str]
) -> list[str]:
    """Remove parts of older contents of the files in the plan, once the new ones are all done.

    Args:
        scores: The score table.
        fragments: All fragments of the files in question.
        done: What is committed now for one version, from `committed`.

    Returns:
        The names of the removed parts.
    """
    keys: dict[str, set[str]] = {}
    for fragment in fragments:
        keys.setdefault(_file_digest(fragment.path), set()).add(fragment.key)
    removed = []
    for key, name in done.items():
        current = keys.get(PurePosixPath(name).name.split("-")[1])
        if current is not None and key not in current and current <= done.keys():
            scores.remove(name)
            scores.remove(f"_heatmaps/{key}", recursive=True)
            removed.append(name)
    return removed


def bind_source(scores: Folder, images: Folder) -> None:
    """Record which IMAGES a score table belongs to, or refuse another one.

    Raises:
        ConfigError: if the table was begun with other images: their rows would share names.
    """
    root = images.root.encode()
    if not scores.create(_SOURCE, root) and scores.read(_SOURCE) != root:
        raise ConfigError(
            f"{scores.root} holds scores of {scores.read(_SOURCE).decode()}, not of {images.root}; "
            "choose another SCORES"
        )


def _file_digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:12]


def _key_of(name: str) -> str:
    return PurePosixPath(name).stem.split("-")[2]
