"""Pictures of the page: small, as text within it, and no more of them than it has room for."""

import base64
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

from PIL import Image

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageError
from patchlake.pipeline.lake.photos import Photos, Place
from patchlake.pipeline.report.chosen import Shown
from patchlake.pipeline.report.maps import Maps
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.scores.heatmap import ColourScale
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


@dataclass(frozen=True)
class Gallery:
    """Where pictures are.

    `scores` is the score table, where the heatmaps are, and `photos` are None where the images
    table cannot be opened. `maps` are of images without a heatmap, which gets one if it can.
    """

    scores: Folder
    photos: Photos | None
    maps: Maps
    storage: StorageSettings

    def read(self, images: Sequence[Shown]) -> list[Seen]:
        """Return images with their pictures; what cannot be read says why."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            drawn = list(pool.map(partial(_heatmap, self.scores, self.storage), images))
        photos = self._photos(images)
        every = zip(images, photos, drawn, strict=True)
        return [
            Seen(image, _from(photo), self._drawn_now(image, photo, heatmap))
            for image, photo, heatmap in every
        ]

    def _photos(self, images: Sequence[Shown]) -> list[bytes | str]:
        """Return JPEGs, or why there is none."""
        if self.photos is None:
            return ["the images table cannot be opened"] * len(images)
        places = [Place(image.source_path, image.source_row) for image in images]
        return [
            photo.jpeg or without_secrets(photo.error or "there is none")
            for photo in self.photos.read(places, _SIDE)
        ]

    def _drawn_now(self, image: Shown, photo: bytes | str, heatmap: Picture) -> Picture:
        """Return an image's heatmap, which is drawn now if the run has drawn none."""
        if image.heatmap_path is not None or isinstance(photo, str):
            return heatmap
        try:
            scale = self._scale(image.group)
            place = (image.source_path, image.source_row)
            drawn = None if scale is None else self.maps.heatmap(place, photo, scale)
        except (ConfigError, StorageError, OSError, ValueError) as error:
            log.warning("a heatmap is not drawn: %s", error)
            return heatmap
        return heatmap if drawn is None else _from(drawn)

    @cached_property
    def _scales(self) -> dict[str, ColourScale | None]:
        return {}

    def _scale(self, group: str) -> ColourScale | None:
        if group not in self._scales:
            self._scales[group] = self.maps.scale(group)
        return self._scales[group]


def _heatmap(scores: Folder, storage: StorageSettings, image: Shown) -> Picture:
    if image.heatmap_path is None:
        return Picture(None, "none was drawn (score.heatmaps)")
    try:
        found = heatmaps.read(scores.path(image.heatmap_path), storage)
        return _from(_smaller(found))
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


def _from(found: bytes | str) -> Picture:
    """Return a JPEG as a picture; a text says why there is none."""
    if isinstance(found, str):
        return Picture(None, found)
    with Image.open(io.BytesIO(found), formats=("JPEG",)) as image:
        width, height = image.size
    text = base64.b64encode(found).decode()
    return Picture(f"data:image/jpeg;base64,{text}", None, width, height)
