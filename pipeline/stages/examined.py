"""A scored image, of a job or of a model in memory: where its map is too high, and its picture."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import photo_pixels, picture_size
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.scores.caption import captioned
from patchlake.pipeline.scores.heatmap import ColourScale, outline, overlay
from patchlake.pipeline.scores.outline import outlined
from patchlake.pipeline.scores.regions import Region, is_marked, regions_of
from patchlake.pipeline.scores.verdict import Judgement


@dataclass(frozen=True)
class Examined:
    """An image with an anomaly map, which is smoothed once, where that is asked for."""

    judgement: Judgement
    anomaly_map: Float32[np.ndarray, "rows columns"]
    # (width, height) of the upright image, in pixels.
    size: tuple[int, int]
    # Of the fit: from the map to the picture.
    geometry: Geometry
    # Which pixels of the model's input count, where a region of interest says it.
    interior: Interior | None = None

    def regions(self) -> list[Region] | None:
        """Return where an anomalous image is so, the largest first; None without a verdict."""
        if self.judgement.pixel_threshold is None:
            return None
        if self._marked is None:
            return []
        return regions_of(self._frame, self._marked, self.size)

    def picture(self, photo: bytes | memoryview, scale: ColourScale) -> UInt8[np.ndarray, "h w 3"]:
        """Return the heatmap: colour and outlines over the photo, and below it what they mean.

        The region of interest has its line below those of the anomalous regions.

        Args:
            photo: JPEG that `small_photo` made of the image.
            scale: The group's.
        """
        drawn = overlay(photo_pixels(photo), self._frame, scale)
        if self.interior is not None:
            inside = self.interior.pixels()
            shape = picture_size(*self.size)
            drawn = outlined(drawn, self.geometry.over_frame(inside, self.size, shape))
        if self._marked is not None:
            outline(drawn, self._marked)
        return captioned(drawn, self.judgement, scale)

    @cached_property
    def _frame(self) -> Float32[np.ndarray, "h w"]:
        return self.geometry.to_frame(self.anomaly_map, self.size, picture_size(*self.size))

    @cached_property
    def _marked(self) -> Bool[np.ndarray, "h w"] | None:
        """What regions are made of; None where the image is not anomalous."""
        threshold = self.judgement.pixel_threshold
        if threshold is None or not self.judgement.is_anomalous:
            return None
        return is_marked(self._frame, threshold)
