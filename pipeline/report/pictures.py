"""Pictures of the page: small, as text within it, and no more of them than it has room for."""

import base64
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageError
from patchlake.pipeline.lake.photos import Photos, Place
from patchlake.pipeline.report.chosen import Shown
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.shown import without_secrets
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

# Of the longest side, in pixels.
_SIDE = 400
_QUALITY = 80
# Of a heatmap's pixels before it is made smaller. What we draw has a 15th of it.
_LARGEST = 4_000_000

# Heatmaps, behind the latency of an object store.
_AT_ONCE = 8

NO_ROOM = "left out, so that the page stays small"


@dataclass(frozen=True)
class Picture:
    """A picture as a `data:` URI, or why there is none."""

    uri: str | None
    absent: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Seen:
    """An image of the page with its two pictures."""

    image: Shown
    photo: Picture
    heatmap: Picture


def read_pictures(
    images: Sequence[Shown], scores: Folder, photos: Photos | None, storage: StorageSettings
) -> list[Seen]:
    """Return images with their pictures; what cannot be read says why.

    Args:
        images: In the order of the page.
        scores: The score table, where the heatmaps are.
        photos: Of the table's images; None where these cannot be opened.
        storage: How S3 is reached.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        drawn = list(pool.map(partial(_heatmap, scores, storage), images))
    return list(map(Seen, images, _photos(images, photos), drawn))


def _photos(images: Sequence[Shown], photos: Photos | None) -> list[Picture]:
    if photos is None:
        return [Picture(None, "the images table cannot be opened")] * len(images)
    places = [Place(image.source_path, image.source_row) for image in images]
    return [
        Picture(None, without_secrets(photo.error or "there is none"))
        if photo.jpeg is None
        else _picture(photo.jpeg)
        for photo in photos.read(places, _SIDE)
    ]


def _heatmap(scores: Folder, storage: StorageSettings, image: Shown) -> Picture:
    if image.heatmap_path is None:
        return Picture(None, "none was drawn (score.heatmaps)")
    try:
        found = heatmaps.read(scores.path(image.heatmap_path), storage)
        return _picture(_smaller(found))
    except (ConfigError, StorageError, OSError, ValueError, Image.DecompressionBombError) as error:
        log.warning("a heatmap is not shown: %s", error)
        return Picture(None, without_secrets(str(error)))


def _smaller(jpeg: bytes) -> bytes:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        if image.width * image.height > _LARGEST:
            raise ValueError(f"it has {image.width} x {image.height} pixels, too many for a page")
        image.thumbnail((_SIDE, _SIDE))
        sink = io.BytesIO()
        image.convert("RGB").save(sink, "JPEG", quality=_QUALITY, optimize=True)
        return sink.getvalue()


def _picture(jpeg: bytes) -> Picture:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        width, height = image.size
    text = base64.b64encode(jpeg).decode()
    return Picture(f"data:image/jpeg;base64,{text}", None, width, height)
