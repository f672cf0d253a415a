"""Hive keys of the files that an ingest writes: by them `--where` and other engines pass files by.

Of each image a key has the value that a manifest's column of its name says, or else a folder
`KEY=value` that it lies in. Without either, `dt` is the day (UTC) on which the picture was taken,
and any other key is what it was before.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import shown
from patchlake.pipeline.sources.sources import SourceImage
from patchlake.pipeline.storage.folder import NULL_PARTITION, escape, unescape
from patchlake.pipeline.tables import IMAGES

_DAY = "dt"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Keys of folders that are ours: of a group's files, and of scores.
_OURS = ("g", "version")


def require_keys(names: Sequence[str]) -> None:
    """Raise `ConfigError` if a key is not a word, comes twice, or means something already."""
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            raise ConfigError(f"--partition {shown(name)}: a key is one word of ASCII, named once")
        if name in (*_OURS, *IMAGES.names):
            raise ConfigError(
                f"--partition {name}: {name} is a column of the images table or a key of its own; "
                "name another one"
            )


def with_folders(
    image: SourceImage, names: Sequence[str], cells: Mapping[str, str | None]
) -> SourceImage:
    """Return the image with the folders that its Parquet file is to lie in.

    Args:
        image: The image.
        names: The keys, outermost first.
        cells: What a manifest says of it, by column.
    """
    if not names:
        return image
    found = {name: cells[name] for name in names if cells.get(name)}
    said = _pairs("/".join(PurePosixPath(image.name).parts[:-1])) | found
    return replace(image, hive=_folders({name: said.get(name) for name in names}))


def completed(image: SourceImage, known: str) -> SourceImage:
    """Return the image with the keys that the source does not say.

    Args:
        image: With the time at which it was taken, if that is known.
        known: The folders of its row of before, or "".
    """
    if not image.hive:
        return replace(image, hive=known)
    before = _pairs(known)
    if image.captured_at is not None:
        before |= {_DAY: image.captured_at.date().isoformat()}
    said = _pairs(image.hive)
    names = (part.partition("=")[0] for part in image.hive.split("/"))
    return replace(image, hive=_folders({n: said.get(n) or before.get(n) for n in names}))


def _pairs(folders: str) -> dict[str, str | None]:
    """Return the keys and values that folders say; those that are null are not among them."""
    pairs = (part.partition("=") for part in folders.split("/"))
    return {k: unescape(v) for k, equals, v in pairs if equals and v not in ("", NULL_PARTITION)}


def _folders(values: Mapping[str, str | None]) -> str:
    return "/".join(f"{k}={escape(v) if v else NULL_PARTITION}" for k, v in values.items())


def require_values(images: Iterable[SourceImage], names: Sequence[str], source: str) -> None:
    """Raise `ConfigError` if of no image at all it is known what a key is."""
    known = {pair for image in images for pair in image.hive.split("/")}
    for name in names:
        if not any(p.startswith(f"{name}=") and p != f"{name}={NULL_PARTITION}" for p in known):
            day = " or captured_at" if name == _DAY else ""
            raise ConfigError(
                f"--partition {name}: {source} says it of no image: it needs a manifest with a "
                f"column {name}{day}, or folders {name}=VALUE"
            )
