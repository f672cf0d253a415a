"""All that the page counts, in one reading of narrow columns: by group and night, and the worst.

Memory is that of the groups and nights and of the distinct scores of each (`counts`), at most some
30 bytes a row and on a real table a tenth of it; never the rows.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.report import counts
from patchlake.pipeline.report.pools import Pool, Rows
from patchlake.pipeline.score_table.nights import nights
from patchlake.pipeline.tables import SCORES

# Cells of a side of the map of where defects lie.
SIDE = 24
_COLUMNS = (
    *("group", "status", "image_score", "p_value", "is_anomalous", "threshold", "regions"),
    *("width", "height", "source_path", "source_row"),
)
# Arrow reads ahead of whoever is slower than storage, up to the end of its files.
_FILES_AT_ONCE = 16
# Of parts of 256 rows, hundreds are counted together.
_ROWS_AT_ONCE = 2**16
_NIGHT_BITS = 24
_SIZE_BITS = 31

# Of each night: pictures of what is anomalous and of the nearest misses, and unreadable images.
_WORST_OF_GROUP, _WORST_OF_NIGHT = 12, 60
_MISSES_OF_GROUP, _MISSES_OF_NIGHT = 6, 18
_ERRORS_OF_GROUP, _ERRORS_OF_NIGHT = 10, 60


@dataclass
class Cell:
    """What is counted of a group in a night."""

    images: int = 0
    # Without a score, but for `no_model`; and those of `no_model`.
    unreadable: int = 0
    no_model: int = 0
    scored: int = 0
    # Those of the scored that have a verdict, and that are anomalous.
    judged: int = 0
    alarms: int = 0

    def add(self, other: "Cell") -> None:
        """Count what another one has as well."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class Tally:
    """What was read of a score table so far; the same for any order and cut of its rows."""

    # Names in the order in which they came; what is counted by place goes by these.
    groups: dict[str, int] = field(default_factory=dict)
    nights: dict[str, int] = field(default_factory=dict)
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    # Of groups: the threshold, and an image's width times 2**31 and its height, in pixels.
    thresholds: dict[int, float] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    # The largest p-value of an anomalous image.
    alarm_p_values: dict[int, float] = field(default_factory=dict)
    worst: Pool = field(default_factory=lambda: Pool(_WORST_OF_GROUP, _WORST_OF_NIGHT))
    misses: Pool = field(default_factory=lambda: Pool(_MISSES_OF_GROUP, _MISSES_OF_NIGHT))
    errors: Pool = field(default_factory=lambda: Pool(_ERRORS_OF_GROUP, _ERRORS_OF_NIGHT))
    _scores: counts.Counts = field(default_factory=counts.Counts)
    _spots: counts.Counts = field(default_factory=counts.Counts)

    def scores_of(self, group: int, night: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the buckets of the scores of a group in a night, and how many are in each."""
        low = self._cell_key(group, night)
        keys, found = self._scores.between(low, low + (1 << counts.BITS))
        return keys - low, found

    def shape_of(self, group: int) -> tuple[int, int] | None:
        """Return width and height of a group's images in pixels; None where none was scored."""
        size = self.sizes.get(group)
        return None if size is None else (size >> _SIZE_BITS, size & (2**_SIZE_BITS - 1))

    def spots_of(self, group: int) -> np.ndarray:
        """Return how many regions have their centre in each cell of the image, SIDE x SIDE."""
        low = group * SIDE * SIDE
        keys, found = self._spots.between(low, low + SIDE * SIDE)
        spots = np.zeros(SIDE * SIDE, np.int64)
        spots[keys - low] = found
        return spots.reshape(SIDE, SIDE)

    def add(self, rows: pa.Table, night: pa.Array, files: np.ndarray) -> None:
        """Count some rows.

        Args:
            rows: `_COLUMNS`, in one chunk each.
            night: Of each row, as text.
            files: Of each row, the place of its file.
        """
        group, of_night = _places(rows.column("group"), self.groups), _places(night, self.nights)
        seen = _Seen.of(rows)
        self._count(group, of_night, seen)
        for place, status in zip(group[seen.failed], seen.statuses, strict=True):
            self.statuses[int(place), status] += 1
        at = np.flatnonzero(seen.is_scored)
        self._scores.add(self._cell_keys(group[at], of_night[at]) | counts.buckets(seen.score[at]))
        self._measure(group, seen)
        self._spots.add(_spots(rows, group))
        self._rank(rows, seen, (group, of_night, files))

    def _count(self, group: np.ndarray, night: np.ndarray, seen: "_Seen") -> None:
        keys, cell = np.unique((group << _NIGHT_BITS) | night, return_inverse=True)
        masks = {
            "images": np.ones(len(group), bool),
            "unreadable": ~seen.is_scored & ~seen.no_model,
            "no_model": seen.no_model,
            "scored": seen.is_scored,
            "judged": seen.is_judged,
            "alarms": seen.is_alarm,
        }
        for name, mask in masks.items():
            for key, number in zip(keys, np.bincount(cell[mask], minlength=len(keys)), strict=True):
                place = (int(key >> _NIGHT_BITS), int(key & (2**_NIGHT_BITS - 1)))
                one = self.cells.setdefault(place, Cell())
                setattr(one, name, getattr(one, name) + int(number))

    def _measure(self, group: np.ndarray, seen: "_Seen") -> None:
        # The largest, so that the order of the rows is no matter.
        for kept, of_group, values in (
            (np.isfinite(seen.threshold), self.thresholds, seen.threshold),
            (seen.size > 0, self.sizes, seen.size),
            (seen.is_alarm & np.isfinite(seen.p_value), self.alarm_p_values, seen.p_value),
        ):
            for place, value in _largest(group[kept], values[kept]):
                of_group[place] = max(value, of_group.get(place, value))

    def _rank(
        self, rows: pa.Table, seen: "_Seen", places: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        group, night, files = places
        rank = np.where(seen.is_scored, -seen.excess, 0.0)
        path = rows.column("source_path").to_numpy(zero_copy_only=False)
        row = rows.column("source_row").to_numpy()
        every = Rows(rank, path, row, group, night, files)
        # Where nothing is judged, the worst are those that score highest.
        self.worst.offer(every.where(seen.is_alarm | (seen.is_scored & ~seen.is_judged)))
        self.misses.offer(every.where(seen.is_judged & ~seen.is_alarm))
        self.errors.offer(every.where(~seen.is_scored & ~seen.no_model))

    @staticmethod
    def _cell_key(group: int, night: int) -> int:
        return ((group << _NIGHT_BITS) | night) << counts.BITS

    @staticmethod
    def _cell_keys(group: np.ndarray, night: np.ndarray) -> np.ndarray:
        keys: np.ndarray = ((group << _NIGHT_BITS) | night) << counts.BITS
        return keys


@dataclass(frozen=True)
class _Seen:
    """What some rows say, as arrays of their length."""

    score: np.ndarray
    threshold: np.ndarray
    p_value: np.ndarray
    # How far the score is up to the threshold, which is 1; without one, the score.
    excess: np.ndarray
    is_scored: np.ndarray
    is_judged: np.ndarray
    is_alarm: np.ndarray
    no_model: np.ndarray
    failed: np.ndarray
    # Of those that failed.
    statuses: list[str]
    # Width times 2**31 and height.
    size: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table) -> "_Seen":
        score, threshold = _floats(rows, "image_score"), _floats(rows, "threshold")
        status = rows.column("status")
        is_ok = pc.equal(status, "ok").to_numpy()
        is_scored = is_ok & np.isfinite(score)
        verdict = rows.column("is_anomalous")
        is_judged = is_scored & verdict.is_valid().to_numpy()
        failed = np.flatnonzero(~is_ok)
        width, height = _whole(rows, "width"), _whole(rows, "height")
        return cls(
            score,
            threshold,
            _floats(rows, "p_value"),
            excess(score, threshold),
            is_scored,
            is_judged,
            is_judged & pc.equal(verdict.cast(pa.int8()).fill_null(0), 1).to_numpy(),
            pc.equal(status, "no_model").to_numpy(),
            failed,
            status.take(pa.array(failed)).to_pylist(),
            np.where(is_scored, (width << _SIZE_BITS) | height, 0),
        )


def excess(score: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Return how far scores are up to their thresholds, at which it is 1.

    A score is divided by its threshold where that is positive, so that groups compare; else it is
    the difference and 1. Without a threshold it is the score itself.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(threshold > 0, score / threshold, score - threshold + 1)
    return np.where(np.isfinite(threshold), ratio, score)


def read_tally(dataset: ds.FileSystemDataset, night_column: str) -> tuple[Tally, list[str]]:
    """Return what is counted of a dataset of scores, and its files, whose places the rows name.

    Args:
        dataset: As `open_table` returns it.
        night_column: Tells nights; of the dataset.
    """
    tally, files = Tally(), [fragment.path for fragment in dataset.get_fragments()]
    for rows, numbers in _chunks(dataset, [*_COLUMNS, night_column], files):
        night = nights(rows.column(night_column))
        tally.add(rows, night, numbers)
    return tally, files


def _chunks(
    dataset: ds.FileSystemDataset, columns: list[str], files: list[str]
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield rows, some ten thousands at a time, and of each the place of its file."""
    place = {path: number for number, path in enumerate(files)}
    waiting: list[pa.RecordBatch] = []
    numbers: list[np.ndarray] = []
    present = [name for name in dict.fromkeys(columns) if name in dataset.schema.names]
    for tagged in _batches(dataset, present):
        waiting.append(tagged.record_batch)
        numbers.append(np.full(len(tagged.record_batch), place[tagged.fragment.path]))
        if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
            yield _together(waiting), np.concatenate(numbers)
            waiting, numbers = [], []
    if waiting:
        yield _together(waiting), np.concatenate(numbers)


def _together(batches: list[pa.RecordBatch]) -> pa.Table:
    """Return them as one; columns that an earlier patchlake did not write are null."""
    rows = pa.Table.from_batches(batches).combine_chunks()
    for name in _COLUMNS:
        if name not in rows.column_names:
            kind = SCORES.field(name).type
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def _batches(dataset: ds.FileSystemDataset, columns: list[str]) -> Iterator[ds.TaggedRecordBatch]:
    fragments = list(dataset.get_fragments())
    for start in range(0, len(fragments), _FILES_AT_ONCE):
        some = fragments[start : start + _FILES_AT_ONCE]
        window = ds.FileSystemDataset(some, dataset.schema, dataset.format, dataset.filesystem)
        yield from window.scanner(columns=columns).scan_batches()


def _places(column: pa.ChunkedArray | pa.Array, known: dict[str, int]) -> np.ndarray:
    """Return the place of each text among those that are known, which gain what is new."""
    coded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = coded.dictionary_encode()
    places = [known.setdefault(name, len(known)) for name in coded.dictionary.to_pylist()]
    found: np.ndarray = np.array(places, np.int64)[coded.indices.to_numpy()]
    return found


def _largest(group: np.ndarray, values: np.ndarray) -> list[tuple[int, Any]]:
    """Return the largest value of each group that has one."""
    groups, place = np.unique(group, return_inverse=True)
    order = np.lexsort((values, place))
    last = np.flatnonzero(np.diff(place[order], append=len(groups)))
    return list(zip(groups.tolist(), values[order][last].tolist(), strict=True))


def _spots(rows: pa.Table, group: np.ndarray) -> np.ndarray:
    """Return, of each region, the cell of its group's image that its centre is in."""
    regions = rows.column("regions").combine_chunks()
    row = pc.list_parent_indices(regions).to_numpy()
    every = pc.list_flatten(regions)
    places = []
    for begin, side, centre in (("y", "height", "centre_y"), ("x", "width", "centre_x")):
        box = _filled(pc.struct_field(every, begin), np.nan)
        at = box + _filled(pc.struct_field(every, side), np.nan) / 2
        # Tables of before it was kept have no other centre than the box's.
        if every.type.get_field_index(centre) >= 0:
            at = _filled(pc.struct_field(every, centre), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = at / _whole(rows, side)[row]
        places.append(share)
    known = np.isfinite(places).all(axis=0)
    down, across = (np.clip(share[known] * SIDE, 0, SIDE - 1).astype(np.int64) for share in places)
    cells: np.ndarray = (group[row[known]] * SIDE + down) * SIDE + across
    return cells


def _floats(rows: pa.Table, name: str) -> np.ndarray:
    return _filled(rows.column(name), np.nan)


def _filled(column: pa.ChunkedArray | pa.Array, missing: float) -> np.ndarray:
    floats = pc.fill_null(column.cast(pa.float64()), missing)
    filled: np.ndarray = floats.to_numpy(zero_copy_only=False)
    return filled


def _whole(rows: pa.Table, name: str) -> np.ndarray:
    found: np.ndarray = pc.fill_null(rows.column(name), 0).to_numpy(zero_copy_only=False)
    return np.maximum(found.astype(np.int64), 0)
