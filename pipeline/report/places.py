"""Where on the part defects lie, where regions do not say it: at the peaks of anomaly maps."""

from collections.abc import Sequence

import numpy as np
import pyarrow.dataset as ds

from patchlake.pipeline.images.geometry import Geometry, crop_offset
from patchlake.pipeline.report.chosen import read_rows
from patchlake.pipeline.report.pools import Row
from patchlake.pipeline.report.tally import SIDE

_COLUMNS = (
    *("source_path", "source_row", "anomaly_map", "map_height", "map_width", "width", "height"),
)


def peaks(
    dataset: ds.FileSystemDataset, rows: Sequence[Row], files: Sequence[str], geometry: Geometry
) -> dict[int, np.ndarray]:
    """Return, by group, how many of these images have their peak in each cell, SIDE x SIDE.

    Groups without maps are left out. Reads the maps of these rows, and no others.
    """
    if not rows:
        return {}
    group = {(row.source_path, row.source_row): row.group for row in rows}
    found: dict[int, np.ndarray] = {}
    for one in read_rows(dataset, _COLUMNS, rows, files).to_pylist():
        place = group.get((one["source_path"], one["source_row"]))
        if place is None or not _has_map(one):
            continue
        down, across = _peak(one, geometry)
        spots = found.setdefault(place, np.zeros((SIDE, SIDE), np.int64))
        spots[down, across] += 1
    return found


def _has_map(row: dict[str, object]) -> bool:
    """Return whether a row has a map whose size is what it says, and an image to place it in."""
    grid, found = (row["map_height"], row["map_width"]), row["anomaly_map"]
    if not (isinstance(found, list) and all(isinstance(n, int) and n > 0 for n in grid)):
        return False
    return len(found) == int(str(grid[0])) * int(str(grid[1])) and bool(row["width"]) and bool(row["height"])


def _peak(row: dict[str, object], geometry: Geometry) -> tuple[int, int]:
    """Return the cell of the upright image that a map's highest patch is in."""
    rows, columns = int(str(row["map_height"])), int(str(row["map_width"]))
    highest = int(np.argmax(np.array(row["anomaly_map"], np.float32)))
    resized = geometry.resized(int(str(row["width"])), int(str(row["height"])))
    cells = []
    for at, patches, side, whole in zip(
        divmod(highest, columns), (rows, columns), geometry.input_size, resized, strict=True
    ):
        inside = (at + 0.5) / patches * side + crop_offset(whole, side)
        cells.append(int(np.clip(inside / whole * SIDE, 0, SIDE - 1)))
    return cells[0], cells[1]
