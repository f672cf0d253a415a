"""Where heatmaps lie, how they are put and removed, and how one is read by its `heatmap_path`.

    files     _heatmaps/<key>/<row>.jpg        a file an image
    packed    _heatmaps/<key>.zip#<row>.jpg    a file a fragment, and in it a member an image

Both are put before the part. A row without a picture has no path; a fragment without any has
neither folder nor zip. Keys of the two never meet, since `score.heatmap_store` is covered by them.
"""

import io
import re
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from patchlake.pipeline.config import HeatmapStore, StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageError
from patchlake.pipeline.score_table.packed import (
    LARGEST_PICTURE,
    NotThere,
    member_name,
    pack,
    read_packed,
)
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.chains import split_chain
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import reading

_FOLDER = "_heatmaps"
# A key is 20 digits of SHA-256, and a row an int64. What a stranger writes into a table can name
# nothing but such files.
_PATH = re.compile(
    rf"(?P<folder>(?:.*/)?){_FOLDER}/(?P<key>[0-9a-f]{{20}})"
    r"(?P<store>/|\.zip#)(?P<row>0|[1-9]\d{0,18})\.jpg",
    re.ASCII | re.DOTALL,
)
_JPEG = b"\xff\xd8\xff"
_AGAIN = "remove its part, and the same `patchlake score` draws it again"


def heatmap_name(key: str, source_row: int, store: HeatmapStore) -> str:
    """Return an image's `heatmap_path`, relative to SCORES.

    Args:
        key: Of the fragment.
        source_row: The image's.
        store: What it is kept in.
    """
    within = "/" if store == "files" else ".zip#"
    return f"{_FOLDER}/{key}{within}{member_name(source_row)}"


def put_file(scores: Folder, key: str, source_row: int, picture: bytes) -> None:
    """Put one image's heatmap as a file."""
    scores.write(heatmap_name(key, source_row, "files"), picture)


def put_packed(scores: Folder, key: str, pictures: Mapping[int, bytes]) -> None:
    """Put a fragment's heatmaps, by source row, in one atomic write; nothing, if there are none."""
    if pictures:
        scores.write(f"{_FOLDER}/{key}.zip", pack(pictures))


def remove(scores: Folder, key: str) -> None:
    """Remove a fragment's heatmaps, whichever way they are kept; what is gone already is fine.

    A part's name does not say which way that is, and reading it would cost as much as removing
    what is not there.
    """
    scores.remove(f"{_FOLDER}/{key}.zip")
    scores.remove(f"{_FOLDER}/{key}", recursive=True)


class _Place(NamedTuple):
    """A picture: the folder and name of its file, and its row where that file is a zip."""

    folder: Folder
    name: str
    packed_row: int | None

    @property
    def shown(self) -> str:
        return shown(self.folder.path(self.name))


def read(path: str, storage: StorageSettings) -> bytes:
    """Return one heatmap, as JPEG, of at most 64 MiB.

    On a disk and in S3 only the picture is read, and of a zip its index; files of other stores
    come whole, and may have 64 MiB.

    Args:
        path: SCORES and the `heatmap_path` of a row, with a slash between them.
        storage: How S3 is reached.

    Raises:
        ConfigError: if the path is none, nothing is there, or it is not what patchlake writes.
        StorageError: if storage refuses, or gives no answer.
    """
    place = _place_of(path, storage)
    try:
        with reading(place.shown, _AGAIN):
            picture = _content(place)
            if not picture.startswith(_JPEG):
                raise ValueError("the picture is no JPEG")
    except FileNotFoundError:
        raise ConfigError(
            f"{place.shown} does not exist; a heatmap_path is relative to SCORES, whose path goes "
            "before it, and goes with its part when that is replaced or expires"
        ) from None
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"{place.shown} cannot be read: {error.strerror or error}") from None
    return picture


def _place_of(path: str, storage: StorageSettings) -> _Place:
    first, behind = split_chain(path)
    match = _PATH.fullmatch(first)
    if match is None:
        raise ConfigError(
            f"{shown(path)} is no heatmap_path: those end in {_FOLDER}/KEY/ROW.jpg, or in "
            f"{_FOLDER}/KEY.zip#ROW.jpg"
        )
    folder = Folder.at((match["folder"] or ".") + behind, storage)
    key, row = match["key"], match["row"]
    if match["store"] == "/":
        return _Place(folder, f"{_FOLDER}/{key}/{row}.jpg", None)
    return _Place(folder, f"{_FOLDER}/{key}.zip", int(row))


def _content(place: _Place) -> bytes:
    if place.packed_row is None:
        return _whole(place)
    with _opened(place) as file:
        try:
            return read_packed(file, place.packed_row)
        except NotThere as error:
            raise ConfigError(
                f"{place.shown} has {error}; heatmap_path of the rows of its part says which"
            ) from None


def _opened(place: _Place) -> BinaryIO:
    if place.folder.is_local or place.folder.is_s3:
        return place.folder.open(place.name)
    return io.BytesIO(_whole(place))


def _whole(place: _Place) -> bytes:
    content = place.folder.read(place.name, at_most=LARGEST_PICTURE + 1)
    if len(content) > LARGEST_PICTURE:
        raise ValueError(f"it has more than {LARGEST_PICTURE} bytes, and no more are read")
    return content
