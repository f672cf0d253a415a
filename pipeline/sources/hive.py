"""Hive keys of the files that an ingest writes: by them `--where` and other engines pass files by.

Of each image a key has the value that a manifest's column of its name says, or else a folder
`KEY=value` that it lies in. Without either, `dt` is the day (UTC) on which the picture was taken.
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
    for part in PurePosixPath(image.name).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and value not in ("", NULL_PARTITION):
            found.setdefault(key, unescape(value))
    if image.captured_at is not None:
        found.setdefault(_DAY, image.captured_at.date().isoformat())
    values = (escape(found.get(name) or "") or NULL_PARTITION for name in names)
    return replace(image, hive="/".join(map("{}={}".format, names, values)))


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
