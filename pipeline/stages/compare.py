"""compare: one part's scores against the labels and masks of its images.

The metric frame is 256 x 256 of the whole image: the map is brought there by `Geometry.to_frame`,
masks as `pipeline.images.masks` says. An anomalous image of which no mask says where its defect is
counts for the image AUROC only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ImageError, TableError
from pipeline.evaluation.pixels import PixelCurves
from pipeline.evaluation.roc import auroc
from pipeline.images.decode import decode_mask, limits_of
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment
from pipeline.stages.source import Source

FRAME = (256, 256)
_GOOD = "good"


@dataclass
class GroupMetrics:
    """Accumulates one group's images; memory is 9 bytes an image and the histograms of pixels."""

    scores: list[float] = field(default_factory=list)
    is_anomalous: list[bool] = field(default_factory=list)
    pixels: PixelCurves = field(default_factory=PixelCurves)
    # Labelled images that are left out: without a score, and of pixels only, anomalous ones whose
    # mask is missing, no image, or marks nothing.
    unscored: int = 0
    unmasked: int = 0
    unreadable_masks: int = 0
    empty_masks: int = 0
    # Counted in: masks of another size than their image are stretched over it.
    resized_masks: int = 0

    def image_auroc(self) -> float | None:
        """Return the image AUROC; None if a class is absent."""
        return auroc(np.asarray(self.scores, np.float64), np.asarray(self.is_anomalous, bool))


def add_part(
    metrics: dict[str, GroupMetrics], source: Source, scores: Folder, part: str, fragment: Fragment
) -> None:
    """Add the labelled rows of one part whose split is not train.

    Raises:
        TableError: if a part's rows are not those of its fragment.
    """
    # As a file, not a dataset: the folder's `version=` is no column of ours.
    scored = pq.ParquetFile(pa.BufferReader(scores.read(part))).read(columns=_SCORE_COLUMNS)
    described = source.read(fragment, mask=True)
    if source.where is not None:
        asked = described.column("source_row").combine_chunks()
        scored = scored.filter(pc.is_in(scored.column("source_row"), value_set=asked))
    if scored.column("source_row").to_pylist() != described.column("source_row").to_pylist():
        raise TableError(f"{scores.path(part)} has other rows than its fragment; score again")
    group = metrics.setdefault(fragment.group, GroupMetrics())
    for row, image in zip(_rows(scored), _rows(described), strict=True):
        label = image.get("label")
        if label is not None and image.get("split") != "train":
            _add_image(group, source, row, image)


_SCORE_COLUMNS = [
    "source_row",
    "image_score",
    "anomaly_map",
    "map_height",
    "map_width",
    "width",
    "height",
]


def _rows(table: pa.Table) -> Iterator[dict[str, object]]:
    # Lists of floats as arrays, not as Python objects: a map has 784 of them.
    for batch in table.to_batches(max_chunksize=64):
        columns = {name: batch.column(name) for name in batch.schema.names}
        for i in range(batch.num_rows):
            yield {
                name: column[i].values.to_numpy()
                if name == "anomaly_map" and column[i].is_valid
                else column[i].as_py()
                for name, column in columns.items()
            }


def _add_image(
    group: GroupMetrics, source: Source, row: dict[str, object], image: dict[str, object]
) -> None:
    score, anomaly_map = row["image_score"], row["anomaly_map"]
    if not isinstance(score, float):
        group.unscored += 1
        return
    is_anomalous = image["label"] != _GOOD
    group.scores.append(score)
    group.is_anomalous.append(is_anomalous)
    if not isinstance(anomaly_map, np.ndarray):
        return
    size = (_number(row["width"]), _number(row["height"]))
    mask = _mask(group, image.get("mask"), size, source) if is_anomalous else np.zeros(FRAME, bool)
    if mask is None:
        return
    grid = anomaly_map.reshape(_number(row["map_height"]), _number(row["map_width"]))
    group.pixels.add(source.geometry.to_frame(grid, size, FRAME), mask)


def _mask(
    group: GroupMetrics, content: object, size: tuple[int, int], source: Source
) -> np.ndarray | None:
    """Return the mask of an anomalous image; None, and counted, where it says nothing."""
    if not isinstance(content, bytes):
        group.unmasked += 1
        return None
    try:
        mask = decode_mask(content, FRAME, limits_of(source.limits))
    except ImageError:
        group.unreadable_masks += 1
        return None
    if mask.is_empty:
        group.empty_masks += 1
        return None
    group.resized_masks += mask.size != size
    return mask.is_defect


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
