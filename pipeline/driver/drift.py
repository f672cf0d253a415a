"""drift: scores/ -> what each group's nights look like, and which of them drift."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.dataset import ScoreDataset, open_table
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.evaluation.verdicts import Verdicts
from patchlake.pipeline.lake.trained import trained_images
from patchlake.pipeline.maths.drift import Comparison, Photos, compared, drifting
from patchlake.pipeline.maths.likeness import alike_limit, look_alikes
from patchlake.pipeline.score_table import by_night
from patchlake.pipeline.score_table.by_night import (
    LOOKS,
    Night,
    NightKey,
    embeddings_of,
    has_thumbnail,
    marks_of,
    thumbnails_of,
)
from patchlake.pipeline.score_table.nights import night_key, nights
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import DRIFT

log = logging.getLogger(__name__)

# Of one scan, see `driver.parts`.
_FILES_AT_ONCE = 16
# Order of the rows, also in a file.
KEY = (("group", "ascending"), ("night", "ascending"), ("model_id", "ascending"))
# What is not worth a word.
_GREY_LEVEL, _PERCENT = 0.5, 0.01


def run(
    scores: str,
    version: str | None = None,
    settings: Settings | None = None,
    night: str | None = None,
) -> pa.Table:
    """Return one row a group and night of a score table, as `tables.DRIFT`, sorted by these.

    No image and no model is read: what the model was trained on is kept beside the scores.

    Args:
        scores: A score table, or a compacted one.
        version: Which rows; the newest run's if absent.
        settings: Of which `storage` counts.
        night: The column that tells nights; else `dt`, `date`, `day` or `night`, where there is
            such a hive key, or the day of `scored_at`.

    Raises:
        ConfigError: if there is no such table, version or column.
        TableError: if a column is not what we write.
    """
    settings = settings or Settings()
    table = Folder.at(scores, settings.storage)
    try:
        dataset = open_table(table, version)
        key = night_key(dataset.schema.names, night)
        found = by_night.by_night(_rows(dataset, key))
        models = {one.model_id for one in found}
        references = {one: _Reference.of(table, one) for one in sorted(models) if one}
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    rows = [_judged(key, one, references.get(key.model_id)) for key, one in found.items()]
    return pa.Table.from_pylist([asdict(row) for row in _tested(rows)], schema=DRIFT)


def _rows(dataset: ScoreDataset, key: str) -> Iterator[pa.Table]:
    """Yield the rows, by batches, with their night."""
    names = dataset.schema.names
    columns = [name for name in by_night.COLUMNS if name in names]
    files = list(dataset.get_fragments())
    for start in range(0, len(files), _FILES_AT_ONCE):
        some = files[start : start + _FILES_AT_ONCE]
        part = ds.FileSystemDataset(some, dataset.schema, dataset.format, dataset.filesystem)
        for batch in part.to_batches(columns=list(dict.fromkeys([*columns, key]))):
            rows = pa.Table.from_batches([batch])
            named = rows.select(columns).append_column("night", nights(rows.column(key)))
            if "part_id" not in names:
                named = named.append_column("part_id", pa.nulls(len(rows), pa.string()))
            yield named


@dataclass(frozen=True)
class _Reference:
    """The training images of one model, as nights are compared with them."""

    photos: Photos
    # Means over the images; None where they were not kept.
    brightness: float | None
    sharpness: float | None
    # Up to which difference images are taken for shots of one part; None where nobody knows.
    limit: float | None

    @classmethod
    def of(cls, scores: Folder, model_id: str) -> "_Reference | None":
        """Return those of a model; None where they were not kept."""
        images = trained_images(scores, model_id)
        if images is None:
            return None
        known = pc.or_(
            images.column("brightness").is_valid(), images.column("part_score").is_valid()
        )
        images = images.filter(known)
        if not len(images):
            return None
        parts = _numbers(images.column("part"))
        embeddings = embeddings_of(images.column("embedding"))
        brightness, sharpness, scored = (
            images.column(name).to_numpy() for name in (*LOOKS[:2], "part_score")
        )
        marks = marks_of(images.column("source_path"), images.column("source_row").to_numpy())
        has = has_thumbnail(images.column("thumbnail"))
        limit = alike_limit(thumbnails_of(images.column("thumbnail"), has)) if has.any() else None
        photos = Photos(parts, marks, brightness, sharpness, scored, embeddings)
        return cls(photos, _mean(brightness), _mean(sharpness), limit)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def _numbers(parts: pa.ChunkedArray) -> np.ndarray:
    """Return a number for each part; images of which it is not known are one each."""
    coded = parts.combine_chunks().dictionary_encode()
    own = len(coded.dictionary) + np.arange(len(parts))
    return np.where(coded.is_valid(), pc.fill_null(coded.indices, 0), own).astype(np.int64)


def _photos(kept: np.ndarray, limit: float | None) -> Photos:
    """Return the images that represent a night; look-alikes without a part_id are of one part."""
    _, parts = np.unique(kept["unit"], return_inverse=True)
    alone = np.flatnonzero(~kept["has_part"] & kept["has_thumbnail"])
    if limit is not None:
        parts[alone] = len(kept) + look_alikes(kept["thumbnail"][alone], limit)
    looks = kept["brightness"], kept["sharpness"], kept["score"], kept["embedding"]
    return Photos(parts.astype(np.int64), kept["mark"], *looks)


def _judged(
    key: NightKey, night: Night, reference: _Reference | None
) -> tuple["DriftRow", Comparison]:
    """Return what is said of one night but whether it drifts, and what the test needs for that."""
    found, kept = Comparison(0, 0), night.kept()
    if reference is not None and kept is not None:
        found = compared(_photos(kept, reference.limit), reference.photos)
    scores = night.scores()
    counted = Verdicts()
    for part, (alarms, others) in night.verdicts.items():
        counted.add(part, is_flagged=True, is_anomalous=False, images=alarms)
        counted.add(part, is_flagged=False, is_anomalous=False, images=others)
    rate, has_verdicts = counted.rates().false_alarm_rate, bool(night.verdicts)
    low, high = rate.interval or (None, None)
    row = DriftRow(
        **asdict(key),
        images=night.images,
        unreadable=night.unreadable,
        unreadable_rate=night.unreadable / night.images,
        scored=len(scores),
        tested=night.tested,
        q05=_quantile(scores, 0.05),
        q25=_quantile(scores, 0.25),
        q50=_quantile(scores, 0.5),
        q75=_quantile(scores, 0.75),
        q95=_quantile(scores, 0.95),
        q99=_quantile(scores, 0.99),
        alarms=sum(alarms for alarms, _ in night.verdicts.values()) if has_verdicts else None,
        alarm_rate=rate.value,
        alarm_rate_low=low,
        alarm_rate_high=high,
        shift=found.shift,
        brightness=_less(night.brightness, reference.brightness if reference else None),
        sharpness=_share(night.sharpness, reference.sharpness if reference else None),
        parts=found.parts,
        trained_parts=found.trained_parts,
        p_value=found.p_value,
    )
    return row, found


def _quantile(scores: np.ndarray, share: float) -> float | None:
    # A score that there is, and none between two: it is the same in every engine.
    return float(np.quantile(scores, share, method="inverted_cdf")) if len(scores) else None


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _share(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _tested(rows: Sequence[tuple["DriftRow", Comparison]]) -> Iterator["DriftRow"]:
    """Yield the rows with the verdict of the test over all of them."""
    p_values = np.array([row.p_value for row, _ in rows if row.p_value is not None], np.float64)
    _, largest = drifting(p_values)
    for row, found in rows:
        if row.p_value is None:
            yield row
            continue
        drifts = row.p_value <= largest
        signals = [name for name, p in found.p_values.items() if drifts and p <= largest]
        yield replace(row, is_drift=drifts, signals=signals)


@dataclass(frozen=True, kw_only=True)
class DriftRow:
    """One row of `tables.DRIFT`, which says what each of these is."""

    group: str
    night: str
    model_id: str
    images: int
    unreadable: int
    unreadable_rate: float
    scored: int
    tested: int
    q05: float | None
    q25: float | None
    q50: float | None
    q75: float | None
    q95: float | None
    q99: float | None
    alarms: int | None
    alarm_rate: float | None
    alarm_rate_low: float | None
    alarm_rate_high: float | None
    shift: float | None
    brightness: float | None
    sharpness: float | None
    parts: int
    trained_parts: int
    p_value: float | None
    is_drift: bool | None = None
    signals: Sequence[str] | None = None

    def words(self) -> str:
        """Return what has changed, as one line."""
        said = []
        if self.brightness is not None and abs(self.brightness) >= _GREY_LEVEL:
            than = "lower" if self.brightness < 0 else "higher"
            said.append(f"brightness {abs(self.brightness):.0f} grey levels {than}")
        if self.sharpness is not None and abs(self.sharpness - 1) >= _PERCENT:
            than = "less sharp" if self.sharpness < 1 else "sharper"
            said.append(f"{abs(self.sharpness - 1):.0%} {than}")
        if self.shift is not None:
            said.append(f"images {self.shift:.1f} standard deviations from training")
        if self.signals and "scores" in self.signals:
            said.append("scores higher than in training")
        return f"group {self.group}, night {self.night or 'unknown'}: {', '.join(said)}"


def rows_of(table: pa.Table) -> list[DriftRow]:
    """Return the rows of a table of `run`, those that drift first, the surest of them first."""
    rows = [DriftRow(**row) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (not row.is_drift, row.p_value if row.is_drift else 0.0))
