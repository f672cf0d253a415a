"""The few images that are shown: all that the score table says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.report.pools import Row
from patchlake.pipeline.score_table.nights import nights

_COLUMNS = (
    *("image_id", "source_path", "source_row", "group", "status", "error", "image_score"),
    *("p_value", "threshold", "regions", "width", "height", "heatmap_path", "model_id"),
)
# Of an image, the largest; the rest is counted.
_REGIONS = 8


@dataclass(frozen=True)
class Box:
    """A region, in pixels of the upright image, and its highest value."""

    x: int
    y: int
    width: int
    height: int
    peak: float | None


@dataclass(frozen=True)
class Shown:
    """An image of the page; of one without a score there are only `status` and `error`."""

    image_id: str
    source_path: str
    source_row: int
    group: str
    night: str
    status: str
    error: str | None
    score: float | None
    # How far the score is up to the threshold, which is 1; without a threshold, the score.
    excess: float | None
    threshold: float | None
    p_value: float | None
    regions: tuple[Box, ...]
    more_regions: int
    width: int | None
    height: int | None
    heatmap_path: str | None
    model_id: str


def read_shown(
    dataset: ds.FileSystemDataset, night_column: str, rows: Sequence[Row], files: Sequence[str]
) -> list[Shown]:
    """Return the images of some rows, in their order."""
    table = read_rows(dataset, [*_COLUMNS, night_column], rows, files)
    night = nights(table.column(night_column)).to_pylist()
    place = table.column("source_path").to_pylist(), table.column("source_row").to_pylist()
    told = table.select([n for n in _COLUMNS if n in table.column_names]).to_pylist()
    by_place = dict(zip(zip(*place, strict=True), zip(told, night, strict=True), strict=True))
    return [_shown(row, *by_place[row.source_path, row.source_row]) for row in rows]


def read_rows(
    dataset: ds.FileSystemDataset, columns: Sequence[str], rows: Sequence[Row], files: Sequence[str]
) -> pa.Table:
    """Return columns of some rows, in any order; only their files are read."""
    wanted = {files[row.file] for row in rows}
    fragments = [f for f in dataset.get_fragments() if f.path in wanted]
    some = ds.FileSystemDataset(fragments, dataset.schema, dataset.format, dataset.filesystem)
    paths = pa.array(sorted({row.source_path for row in rows}), pa.string())
    numbers = pa.array(sorted({row.source_row for row in rows}), pa.int64())
    present = [n for n in dict.fromkeys(columns) if n in dataset.schema.names]
    return some.to_table(
        columns=present,
        filter=pc.field("source_path").isin(paths) & pc.field("source_row").isin(numbers),
    )


def _shown(row: Row, told: dict[str, object], night: str) -> Shown:
    score = _finite(told["image_score"])
    regions = told.get("regions")
    every = regions if isinstance(regions, list) else []
    boxes = tuple(
        Box(one["x"], one["y"], one["width"], one["height"], _finite(one["peak"]))
        for one in every[:_REGIONS]
    )
    width, height = told.get("width"), told.get("height")
    path, error = told.get("heatmap_path"), told["error"]
    return Shown(
        image_id=str(told["image_id"]),
        source_path=row.source_path,
        source_row=row.source_row,
        group=str(told["group"]),
        night=night,
        status=str(told["status"]),
        error=None if error is None else str(error),
        score=score,
        excess=None if score is None else -row.rank,
        threshold=_finite(told.get("threshold")),
        p_value=_finite(told.get("p_value")),
        regions=boxes,
        more_regions=len(every) - len(boxes),
        width=width if isinstance(width, int) else None,
        height=height if isinstance(height, int) else None,
        heatmap_path=None if path is None else str(path),
        model_id=str(told["model_id"]),
    )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, float) and np.isfinite(value) else None
