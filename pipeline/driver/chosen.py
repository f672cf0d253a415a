"""The rows of a score table that a person is to look at, with all that is shown of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.driver.dataset import ScoreDataset
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table.nights import night_key, nights
from patchlake.pipeline.score_table.ranking import COLUMNS, Ranking, RowOrder
from patchlake.pipeline.score_table.scored import Box, ScoredImage
from patchlake.pipeline.shown import shown

# Of one scan: Arrow reads ahead of whoever is slower than storage, up to the end of its files.
_FILES_AT_ONCE = 16
_DETAILS = (
    *("image_id", "heatmap_path", "regions", "width", "height", "model_id", "part_id"),
    *("source_path", "source_row"),
)

# Keeps some of the rows that it is given, `COLUMNS` and `image_id` of the scores.
Filter = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Choice:
    """Which rows are asked for. None: of all groups, of all nights."""

    order: RowOrder = "worst"
    count: int = 20
    group: str | None = None
    night: str | None = None
    seed: int = 0


@dataclass
class Seen:
    """What was met on the way to them, of that group and night."""

    rows: int = 0
    scored: int = 0
    # Of those with a score.
    judged: int = 0
    # Groups with scores of which one has no verdict.
    without_verdict: set[str] = field(default_factory=set)


def choose(dataset: ScoreDataset, choice: Choice, keep: Filter) -> tuple[list[ScoredImage], Seen]:
    """Return the first rows in an order, with their details, and what was met on the way.

    Reads eight narrow columns, of 16 files at a time, and then the other columns of the files that
    have one of the rows. Memory is that and the rows that are asked for.

    Args:
        dataset: Of one version.
        choice: Which.
        keep: Which rows may be among them at all.

    Raises:
        ConfigError: if there is no such group or night, or no row has a threshold to be near to.
    """
    seen = Seen()
    key = night_key(dataset.schema.names)
    rows = _narrow(dataset, choice, key, seen)
    found = Ranking(choice.order, choice.count, choice.seed).first_of(map(keep, rows))
    _require_rows(seen, choice, key)
    return _detailed(dataset, found), seen


def _narrow(dataset: ScoreDataset, choice: Choice, key: str, seen: Seen) -> Iterator[pa.Table]:
    """Yield the rows of a group and night, with the file that each is in."""
    names = list(dict.fromkeys([*COLUMNS, "image_id", key]))
    rule = None if choice.group is None else ds.field("group") == choice.group
    if choice.night is not None and pa.types.is_string(dataset.schema.field(key).type):
        same = ds.field(key) == choice.night
        rule = same if rule is None else rule & same
    for path, batch in _tagged(dataset, list(dataset.get_fragments()), names, rule):
        rows = pa.Table.from_batches([batch])
        rows = rows.append_column("_night", nights(rows.column(key)))
        if choice.night is not None:
            rows = rows.filter(pc.equal(rows.column("_night"), choice.night))
        _note(seen, rows)
        yield rows.append_column("_file", pa.repeat(pa.scalar(path), len(rows)))


def _tagged(
    dataset: ScoreDataset,
    files: Sequence[ds.FileFragment],
    names: Sequence[str],
    rule: ds.Expression | None,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield batches of some files, each with the path of its file, in no order."""
    for start in range(0, len(files), _FILES_AT_ONCE):
        some = files[start : start + _FILES_AT_ONCE]
        part = ds.FileSystemDataset(some, dataset.schema, dataset.format, dataset.filesystem)
        for one in part.scanner(columns=list(names), filter=rule).scan_batches():
            yield one.fragment.path, one.record_batch


def _note(seen: Seen, rows: pa.Table) -> None:
    seen.rows += len(rows)
    scored = rows.filter(rows.column("image_score").is_valid())
    seen.scored += len(scored)
    open_ = scored.filter(scored.column("is_anomalous").is_null())
    seen.judged += len(scored) - len(open_)
    seen.without_verdict.update(open_.column("group").unique().to_pylist())


def _require_rows(seen: Seen, choice: Choice, key: str) -> None:
    told = [
        *([f"of group {shown(choice.group)}"] if choice.group is not None else []),
        *([f"of night {shown(choice.night)} ({key})"] if choice.night is not None else []),
    ]
    if told and not seen.rows:
        raise ConfigError(f"the score table has no row {' and '.join(told)}")
    if choice.order == "near" and not seen.judged:
        raise ConfigError(
            "no row has a threshold to be near to, as its model has none; take the worst, or a "
            "random sample"
        )


def _detailed(dataset: ScoreDataset, found: pa.Table) -> list[ScoredImage]:
    """Return rows with the other columns, in their order."""
    rows = found.to_pylist()
    inside = {row["_file"] for row in rows}
    files = [one for one in dataset.get_fragments() if one.path in inside]
    paths = pa.array({row["source_path"] for row in rows}, pa.string())
    numbers = pa.array({row["source_row"] for row in rows}, pa.int64())
    rule = ds.field("source_path").isin(paths) & ds.field("source_row").isin(numbers)
    names = [name for name in _DETAILS if name in dataset.schema.names]
    details = {}
    for path, batch in _tagged(dataset, files, names, rule):
        for row in batch.to_pylist():
            details[path, row["source_path"], row["source_row"]] = row
    return [
        _image(row, details[row["_file"], row["source_path"], row["source_row"]]) for row in rows
    ]


def _image(row: dict[str, object], details: dict[str, object]) -> ScoredImage:
    regions = details.get("regions")
    boxes = None
    if isinstance(regions, list):
        boxes = tuple(Box(*(one[name] for name in _BOX)) for one in regions)
    told = {name: row[name] for name in COLUMNS}
    told |= {name: details.get(name) for name in _DETAILS if name != "regions"}
    return ScoredImage(night=str(row["_night"]), regions=boxes, **told)  # type: ignore[arg-type]


_BOX = ("x", "y", "width", "height")
