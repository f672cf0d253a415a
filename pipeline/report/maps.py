"""Anomaly maps of the few images that are shown: where they are highest, and as heatmaps.

Regions say where defects lie, and a run has drawn its heatmaps. Maps stand in where it has not: a
group without verdicts has no regions, and of a near miss there is no picture by default.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.dataset as ds
from PIL import Image

from patchlake.pipeline.groups.files import load_calibration
from patchlake.pipeline.images.geometry import Geometries, Geometry, crop_offset
from patchlake.pipeline.images.pictures import photo_pixels
from patchlake.pipeline.report.chosen import read_rows
from patchlake.pipeline.report.facts import Model
from patchlake.pipeline.report.pools import Row
from patchlake.pipeline.report.tally import SIDE
from patchlake.pipeline.scores.calibration import mean_scale
from patchlake.pipeline.scores.heatmap import ColourScale, overlay

_COLUMNS = (
    *("source_path", "source_row", "group"),
    *("anomaly_map", "map_height", "map_width", "width", "height"),
)
_QUALITY = 80


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """An image's group and map, float32, and the (width, height) of its upright image in pixels."""

    group: str
    distances: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Maps:
    """Maps of images by `source_path` and `source_row`, and what they are drawn with."""

    geometry: Geometry | Geometries
    models: Sequence[Model] = ()
    of_images: Mapping[tuple[str, int], AnomalyMap] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        dataset: ds.FileSystemDataset,
        rows: Sequence[Row],
        files: Sequence[str],
        drawn_with: "Maps",
    ) -> "Maps":
        """Return the maps of some rows; those that have none are left out."""
        if not rows or "anomaly_map" not in dataset.schema.names:
            return drawn_with
        told = read_rows(dataset, _COLUMNS, rows, files).to_pylist()
        found = {(one["source_path"], one["source_row"]): _map_of(one) for one in told}
        known = {place: one for place, one in found.items() if one is not None}
        return cls(drawn_with.geometry, drawn_with.models, known)

    def peaks(self, rows: Sequence[Row]) -> dict[int, np.ndarray]:
        """Return, by group, how many of these images are highest in each cell, SIDE x SIDE."""
        found: dict[int, np.ndarray] = {}
        for row in rows:
            one = self.of_images.get((row.source_path, row.source_row))
            if one is not None:
                spots = found.setdefault(row.group, np.zeros((SIDE, SIDE), np.int64))
                spots[self._peak(one)] += 1
        return found

    def heatmap(self, place: tuple[str, int], photo: bytes, scale: ColourScale) -> bytes | None:
        """Return colour over a photo as JPEG; None where there is no map.

        Args:
            place: `source_path` and `source_row`.
            photo: JPEG of the upright image.
            scale: The group's.
        """
        one = self.of_images.get(place)
        if one is None:
            return None
        pixels = photo_pixels(photo)
        frame = self.geometry.of(one.group).to_frame(one.distances, one.size, pixels.shape[:2])
        sink = io.BytesIO()
        Image.fromarray(overlay(pixels, frame, scale)).save(sink, "JPEG", quality=_QUALITY)
        return sink.getvalue()

    def scale(self, group: str) -> ColourScale | None:
        """Return the colours of a group; None where a model cannot be opened or has none.

        Raises:
            ModelError: if a file of a model is damaged.
        """
        records = [(m.folder, m.manifest) for m in self.models]
        known = [(f, m.groups[group]) for f, m in records if f and m and group in m.groups]
        if not known or len(known) < len(self.models):
            return None
        calibrations = [load_calibration(folder, record) for folder, record in known]
        return calibrations[0].scale if len(calibrations) == 1 else mean_scale(calibrations)

    def _peak(self, one: AnomalyMap) -> tuple[int, int]:
        """Return the cell of the upright image that a map's highest patch is in."""
        patches = one.distances.shape
        highest = divmod(int(np.argmax(one.distances)), patches[1])
        geometry = self.geometry.of(one.group)
        resized, inputs = geometry.resized(*one.size), geometry.input_size
        cells = []
        for at, number, side, whole in zip(highest, patches, inputs, resized, strict=True):
            inside = (at + 0.5) / number * side + crop_offset(whole, side)
            cells.append(int(np.clip(inside / whole * SIDE, 0, SIDE - 1)))
        return cells[0], cells[1]


def _map_of(row: Mapping[str, object]) -> AnomalyMap | None:
    """Return a row's map; None where it is not of the size that it says, or has no image's."""
    grid = tuple(row[name] for name in ("map_height", "map_width"))
    size = tuple(row[name] for name in ("width", "height"))
    if not all(isinstance(number, int) and number > 0 for number in (*grid, *size)):
        return None
    rows, columns = (int(str(number)) for number in grid)
    distances = np.array(row["anomaly_map"] or [], np.float32)
    if distances.size != rows * columns or not np.isfinite(distances).all():
        return None
    width, height = (int(str(number)) for number in size)
    return AnomalyMap(str(row["group"]), distances.reshape(rows, columns), (width, height))
