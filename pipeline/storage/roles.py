"""What a folder is: a table of images, scores or reviews, or a model; never two of them.

Each is known by the files that only it has, so that one made by an earlier version is known as
well, and one that belongs to somebody else need not be marked:

    model       `model.json`, or `_runs` and none of the below: a fit that has not published
    scores      `_source.json`, or `_runs`, beside `_cuts`, `_heatmaps` or `_ledger`, or both
    compacted   `_source.json` beside `_tables` or `_next`
    reviews     Parquet files called reviews-*, and no others that are data
    images      Parquet files that are data, and none of the above
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.storage.folder import Folder

Role = Literal["images", "scores", "compacted", "model", "reviews"]

_NAMES: dict[Role, str] = {
    "images": "an images table",
    "scores": "a score table",
    "compacted": "a compacted score table",
    "model": "a model",
    "reviews": "a reviews table",
}
_SOURCE, _MANIFEST, _RUNS = "_source.json", "model.json", "_runs"
_SCORES, _COMPACTED = {"_cuts", "_heatmaps", "_ledger"}, {"_tables", "_next"}
# Files that are looked at for one of Parquet: a page of an object store's listing.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class Use:
    """A folder of a command, and what it is to be there."""

    folder: Folder
    role: Role
    is_written: bool = False


def require(uses: Sequence[Use]) -> None:
    """Refuse a command that takes a folder for what it is not, before anything is written.

    A folder that is read costs one listing of its sub-folders, and so does one that is written,
    unless it holds more than a thousand files: a few requests then. A model that is read is known
    by its manifest (`model_store.models.read_manifest`), and need not be asked here.

    Raises:
        ConfigError: if a folder has another role, or one that is written would be among the images.
    """
    for use in uses:
        found = _role_of(use.folder) if use.is_written else _other_than_images(use.folder)
        if found is not None and found != use.role:
            raise ConfigError(
                f"{use.folder.root} is {_NAMES[found]}, and cannot be {_NAMES[use.role]} as well; "
                "name another folder"
            )
    for one in uses:
        for other in uses:
            if one.is_written and one is not other:
                _require_apart(one, other)


def _require_apart(written: Use, other: Use) -> None:
    ours, theirs = written.folder.root, other.folder.root
    if ours == theirs:
        raise ConfigError(
            f"{ours} is named as {_NAMES[written.role]} and as {_NAMES[other.role]}: "
            "name two folders"
        )
    if other.role == "images" and _is_data_of(ours, theirs):
        raise ConfigError(
            f"{ours} lies inside the images table {theirs}, and its Parquet files would be read as "
            "images: name a folder beside it, or one whose name begins with _"
        )
    if other.role != "images" and ours.startswith(f"{theirs.rstrip('/')}/"):
        raise ConfigError(
            f"{ours} lies inside {theirs}, which is {_NAMES[other.role]}, and its files would be "
            "taken for files of that: name a folder beside it"
        )


def _is_data_of(inner: str, outer: str) -> bool:
    """Return whether a folder lies in another one, where a listing takes its files for data."""
    prefix = f"{outer.rstrip('/')}/"
    if not inner.startswith(prefix):
        return False
    below = PurePosixPath(inner.removeprefix(prefix)).parts
    return not any(part.startswith(("_", ".")) for part in below)


def _other_than_images(folder: Folder) -> Role | None:
    """Return the role of a folder that is ours and no images table, by its sub-folders."""
    return _by_own(set(folder.folders()), folder.exists)


def _by_own(inner: set[str], is_there: Callable[[str], bool]) -> Role | None:
    if not inner & {_RUNS, *_SCORES, *_COMPACTED}:
        return None
    if is_there(_SOURCE):
        return "compacted" if inner & _COMPACTED else "scores"
    if _RUNS not in inner:
        return None
    # What only scores have beside their runs: their `_source.json` was lost, and is asked for.
    return "scores" if inner & _SCORES else "model"


def _role_of(folder: Folder) -> Role | None:
    names = list(islice(folder.names(), _LOOKED_AT))
    if len(names) < _LOOKED_AT:
        # These are all.
        inner = {first for first, slash, _ in (name.partition("/") for name in names) if slash}
        present = frozenset(names)
        is_there: Callable[[str], bool] = lambda name: name in present  # noqa: E731
    else:
        inner, is_there = set(folder.folders()), folder.exists
    found = _by_own(inner, is_there)
    if found is not None or is_there(_SOURCE):
        # `_source.json` alone: a score table, or a compacted one, that was begun and no more.
        return found
    if is_there(_MANIFEST):
        return "model"
    files = [name for name in names if _is_data(name)]
    if not files:
        return None
    return "reviews" if all(name.startswith("reviews-") for name in files) else "images"


def _is_data(name: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in name.split("/"))
    return name.lower().endswith(".parquet") and not hidden
