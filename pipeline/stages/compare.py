"""compare: one part's scores against the labels and masks of its images.

The metric frame is 256 x 256 of the whole image: the map is brought there by `Geometry.to_frame`,
masks as `pipeline.images.masks` says. An anomalous image of which no mask says where its defect is
counts for the image AUROC and the verdicts only.

Verdicts and pixel thresholds are those that the score table carries. Of an image that it does not
call anomalous no pixel is predicted, whatever its map, as the table has no region of it either.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ImageError, TableError
from patchlake.pipeline.evaluation.overlap import ImageOverlap
from patchlake.pipeline.evaluation.pixels import PixelCurves
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.evaluation.segments import Segments
from patchlake.pipeline.evaluation.verdicts import Verdicts
from patchlake.pipeline.groups.membership import Known
from patchlake.pipeline.images.decode import decode_mask, limits_of
from patchlake.pipeline.lake.reviewed import ReviewedRows
from patchlake.pipeline.lake.selection import labels_mean, require_splits, splits_mean
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.trained import is_known, read_trained
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.reading.named import is_of_numbers
from patchlake.pipeline.scores.regions import is_marked
from patchlake.pipeline.storage.folder import Folder

FRAME = (256, 256)


@dataclass
class GroupMetrics:
    """Accumulates one group's images.

    Memory is some 40 bytes an image, 300 bytes a part that has a name, and the histograms of
    pixels.
    """

    scores: list[float] = field(default_factory=list)
    is_anomalous: list[bool] = field(default_factory=list)
    pixels: PixelCurves = field(default_factory=PixelCurves)
    overlap: ImageOverlap = field(default_factory=ImageOverlap)
    # Of images whose model has a threshold.
    verdicts: Verdicts = field(default_factory=Verdicts)
    segments: Segments = field(default_factory=Segments)
    # Labelled images that are left out: without a score, and of pixels only, anomalous ones whose
    # mask is missing, no image, or marks nothing.
    unscored: int = 0
    # Counted in, but for the verdicts: images that have a score and no verdict.
    unjudged: int = 0
    unmasked: int = 0
    unreadable_masks: int = 0
    empty_masks: int = 0
    # Counted in: masks of another size than their image are stretched over it.
    resized_masks: int = 0
    # Images that are left out altogether: without a label; that the model was trained on; of a
    # split to train on, though it was not.
    unlabelled: int = 0
    trained_on: int = 0
    train_split: int = 0
    # Counted in: images whose reviews say what they are.
    reviewed: int = 0
    # Whether the table does not say what its model was trained on.
    is_unknown: bool = False
    # Labels of the images compared that mean defect, and that mean good; and of all rows seen.
    defects: Counter[str] = field(default_factory=Counter)
    goods: Counter[str] = field(default_factory=Counter)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Of these, those that are numbers which their file does not name.
    numbers: Counter[tuple[str, str]] = field(default_factory=Counter)

    def image_auroc(self) -> float | None:
        """Return the image AUROC; None if a class is absent."""
        return auroc(np.asarray(self.scores, np.float64), np.asarray(self.is_anomalous, bool))


@dataclass(frozen=True)
class ScoreTable:
    """A score table, and of each of its models what tells the images it was trained on."""

    folder: Folder
    lake: str
    # What people decided on images of the lake, if that counts.
    reviewed: ReviewedRows | None = None
    _known: dict[str, Known | None] = field(default_factory=dict)

    def known(self, model_id: str) -> Known | None:
        """Return what tells a model's images; None if that was not kept. Raises `ConfigError`."""
        if model_id not in self._known:
            self._known[model_id] = read_trained(self.folder, model_id, self.lake)
        return self._known[model_id]


def _meanings(
    scores: ScoreTable, fragment: Fragment, described: pa.Table, meant: Sequence[str | None]
) -> list[tuple[str | None, bool]]:
    """Return what each row is, and whether reviews say so.

    What people decided stands in the place of a label; of what they dispute nothing is known. Of an
    image of which nobody is sure the label is kept.
    """
    if scores.reviewed is None:
        return [(one, False) for one in meant]
    verdicts = scores.reviewed.verdicts(fragment.path)
    decided = map(verdicts.get, described.column("source_row").to_pylist())
    return [
        (_DECIDED[verdict], True) if verdict in _DECIDED else (one, False)
        for verdict, one in zip(decided, meant, strict=True)
    ]


_DECIDED: dict[str | None, str | None] = {"good": "good", "defective": "defect", "disputed": None}


def add_part(
    metrics: dict[str, GroupMetrics],
    source: Source,
    scores: ScoreTable,
    part: str,
    fragment: Fragment,
) -> None:
    """Add the labelled rows of one part that were not trained on, and whose split is not train.

    Raises:
        TableError: if a part's rows are not those of its fragment.
        ConfigError: if a split has no meaning.
    """
    # As a file, not a dataset: the folder's `version=` is no column of ours.
    content = pa.BufferReader(scores.folder.read(part))
    scored = pq.ParquetFile(content).read(columns=[*_SCORE_COLUMNS, "model_id"])
    described = source.read(fragment, mask=True)
    if source.where is not None:
        asked = described.column("source_row").combine_chunks()
        scored = scored.filter(pc.is_in(scored.column("source_row"), value_set=asked))
    if scored.column("source_row").to_pylist() != described.column("source_row").to_pylist():
        where = scores.folder.path(part)
        raise TableError(f"{where} has other rows than its fragment; score again")
    group = metrics.setdefault(fragment.group, GroupMetrics())
    is_good = _left_over(group, source, scores, fragment, (scored, described))
    for row, image, good in zip(_rows(scored), _rows(described), is_good, strict=True):
        if good is not None:
            _add_image(group, source, row, image, is_anomalous=not good)


def _left_over(
    group: GroupMetrics,
    source: Source,
    scores: ScoreTable,
    fragment: Fragment,
    rows: tuple[pa.Table, pa.Table],
) -> list[bool | None]:
    """Return of each row that is to be compared whether it is good, and None of the others.

    Counts the others.
    """
    described = rows[1]
    absent = pa.chunked_array([pa.nulls(len(described), pa.string())])
    split, label = (
        described.column(name) if name in described.column_names else absent
        for name in ("split", "label")
    )
    split_means = splits_mean(split, source.columns)
    other = Counter(split.filter(pc.equal(split_means, "other")).to_pylist())
    require_splits(other, source.columns, source.images.path(fragment.path))
    labels = labels_mean(label, source.columns).to_pylist()
    means = _meanings(scores, fragment, described, labels)
    of_numbers = "label" in described.column_names and is_of_numbers(described, "label")
    trained = _trained(group, source, scores, fragment, rows)
    is_good: list[bool | None] = []
    for (meant, is_reviewed), text, of_split, was_seen in zip(
        means, label.to_pylist(), split_means.to_pylist(), trained, strict=True
    ):
        compared = meant is not None and not was_seen and of_split != "train"
        is_good.append(meant == "good" if compared else None)
        group.unlabelled += meant is None
        group.trained_on += meant is not None and bool(was_seen)
        group.train_split += meant is not None and not was_seen and of_split == "train"
        if meant is not None and not is_reviewed:
            group.seen[meant, text] += 1
            group.numbers[meant, text] += of_numbers
        if compared:
            group.reviewed += is_reviewed
            named = "by review" if is_reviewed else text
            (group.goods if meant == "good" else group.defects)[named] += 1
    return is_good


def _trained(
    group: GroupMetrics,
    source: Source,
    scores: ScoreTable,
    fragment: Fragment,
    rows: tuple[pa.Table, pa.Table],
) -> np.ndarray:
    """Return which rows their model was trained on; none where that was not kept."""
    scored, described = rows
    (model_id,) = scored.column("model_id").unique().to_pylist() or [""]
    known = scores.known(model_id) if model_id else None
    if known is None:
        group.is_unknown |= bool(model_id)
        return np.zeros(len(described), bool)
    return is_known(known, source, fragment, described)


_SCORE_COLUMNS = [
    "source_row",
    "part_id",
    "image_score",
    "is_anomalous",
    "pixel_threshold",
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
    group: GroupMetrics,
    source: Source,
    row: dict[str, object],
    image: dict[str, object],
    *,
    is_anomalous: bool,
) -> None:
    score, anomaly_map = row["image_score"], row["anomaly_map"]
    if not isinstance(score, float):
        group.unscored += 1
        return
    group.scores.append(score)
    group.is_anomalous.append(is_anomalous)
    _judge(group, row, is_anomalous=is_anomalous)
    if not isinstance(anomaly_map, np.ndarray):
        return
    size = (_number(row["width"]), _number(row["height"]))
    mask = _mask(group, image.get("mask"), size, source) if is_anomalous else np.zeros(FRAME, bool)
    if mask is None:
        return
    grid = anomaly_map.reshape(_number(row["map_height"]), _number(row["map_width"]))
    frame = source.geometry.of(str(image["group"])).to_frame(grid, size, FRAME)
    group.pixels.add(frame, mask)
    group.overlap.add(frame, mask)
    is_flagged, threshold = row.get("is_anomalous"), row.get("pixel_threshold")
    if isinstance(is_flagged, bool) and isinstance(threshold, float):
        marked = is_marked(frame, threshold) if is_flagged else np.zeros(FRAME, bool)
        group.segments.add(marked, mask)


def _judge(group: GroupMetrics, row: dict[str, object], *, is_anomalous: bool) -> None:
    # A part of an earlier patchlake may lack the columns.
    is_flagged, part_id = row.get("is_anomalous"), row.get("part_id")
    if not isinstance(is_flagged, bool):
        group.unjudged += 1
        return
    part = part_id if isinstance(part_id, str) else None
    group.verdicts.add(part, is_flagged=is_flagged, is_anomalous=is_anomalous)


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
