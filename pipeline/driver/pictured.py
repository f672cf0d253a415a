"""Pictures of scored images, small enough to be looked at by the dozen: photos and heatmaps."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, ImageError
from patchlake.pipeline.images.decode import decode_photo
from patchlake.pipeline.images.decoders import DecoderLost
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.lake.photos import Photo, Photos, Place
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.score_table.parts import score_table_of
from patchlake.pipeline.score_table.scored import ScoredImage
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

_GONE = "the images are not there"
# Sides of a heatmap, in pixels: it is no larger than its photo and the strip below that.
_LARGEST = 2048


@dataclass(frozen=True)
class Pictures:
    """Where the photos and heatmaps of a score table are."""

    photos: Photos | None
    # The score table itself, also of a compacted one.
    scores: Folder

    @classmethod
    def of(cls, table: Folder, version: str, storage: StorageSettings) -> "Pictures":
        """Return those of a score table, or of a compacted one.

        Raises:
            ConfigError: if the record of a run is damaged.
        """
        return cls(Photos.of(table, storage, version), score_table_of(table))

    def photos_of(self, images: Sequence[ScoredImage], side: int) -> list[Photo]:
        """Return a photo of each image, in their order; see `Photos.read`."""
        places = [Place(one.source_path, one.source_row) for one in images]
        if self.photos is None:
            return [Photo(place, None, error=_GONE) for place in places]
        return self.photos.read(places, side)

    def heatmap_of(self, image: ScoredImage) -> bytes | None:
        """Return an image's heatmap as JPEG; None where none was drawn, or it is not there."""
        if image.heatmap_path is None:
            return None
        try:
            return heatmaps.read(self.scores.path(image.heatmap_path), self.scores.storage)
        except (ConfigError, OSError) as error:
            log.warning("no heatmap of %s: %s", shown(image.image_id), error)
            return None


def decoded_apart(jpeg: bytes) -> bytes | None:
    """Return a heatmap encoded anew, after a process of its own has decoded it; None if it cannot.

    It is ours, but whoever may write to the table may have replaced it.
    """
    try:
        return decode_photo(jpeg, Limits(formats=("JPEG",)), _LARGEST)[1]
    except (ImageError, DecoderLost) as error:
        log.warning("a heatmap cannot be decoded: %s", error)
        return None
