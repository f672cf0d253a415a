"""parts: scores/ -> one verdict a piece, from all its views and nights."""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.dataset import ScoreDataset, open_table, version_of
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import by_piece
from patchlake.pipeline.score_table.parquet import Order, write_sorted
from patchlake.pipeline.scores.conformal import parts_needed
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder, split_uri

log = logging.getLogger(__name__)

# Of one scan: Arrow reads ahead of whoever is slower than storage, up to the end of its files.
_FILES_AT_ONCE = 16
# Groups that are named in the log.
_SHOWN = 5


def run(scores: str, version: str | None = None, settings: Settings | None = None) -> pa.Table:
    """Return one row a group and `part_id` of a score table, as `tables.PARTS`, sorted by these.

    Reads nine narrow columns, of 16 files at a time. Memory is that and one row a piece; it does
    not grow with the images.

    Args:
        scores: A score table, or a compacted one.
        version: Which rows; the newest run's if absent.
        settings: Of which `storage` counts, and `verdict.false_alarm_rate` where it is named; else
            it is that of the newest run of the version.

    Raises:
        ConfigError: if there is no such table or version, no row has a part_id, or no run is
            recorded and the rate is not named.
        TableError: if the table has no column part_id, or a p_value is not within 0 and 1.
    """
    settings = settings or Settings()
    table = Folder.at(scores, settings.storage)
    try:
        version = version_of(table, version)
        rate = _false_alarm_rate(table, version, settings)
        dataset = open_table(table, version)
        by_piece.require_part_id(dataset.schema.names, table.root)
        rows = _Named(dataset)
        pieces = by_piece.merged_batches(rows.read())
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    if not rows.named:
        raise ConfigError(
            f"none of the {rows.unnamed} rows of version '{version}' of {table.root} has a "
            f"part_id. {by_piece.SAY_PARTS}; then score again"
        )
    found = by_piece.judged(pieces, rate)
    log.info(
        "parts of %s: %d of %d images, at verdict.false_alarm_rate %g; %d rows have no part_id, "
        "and are left out",
        *(table.root, len(found), rows.named, rate, rows.unnamed),
    )
    _say_out_of_reach(found, rate)
    return found


def write(
    parts: pa.Table, out: str, settings: Settings | None = None, order: Order = by_piece.KEY
) -> str:
    """Write pieces, or nights, as one Parquet file, in one atomic put; return its full path.

    Equal rows give equal bytes.

    Args:
        parts: As `run` returns them.
        out: Path or URI of the file; what is there is replaced.
        settings: Of which `storage` counts.
        order: By which the rows are sorted; no two may be equal in it.

    Raises:
        ConfigError: if `out` is no name of a Parquet file, or storage refuses.
    """
    folder, name = _file(out, settings or Settings())
    sink = io.BytesIO()
    write_sorted(parts, sink, order)
    try:
        folder.write(name, sink.getvalue())
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    return folder.path(name)


def require_out(out: str, scores: str, settings: Settings) -> None:
    """Refuse a file that `write` would refuse, or that readers would take for scores.

    Raises:
        ConfigError: if `out` is no name of a Parquet file, or is within a version of SCORES.
    """
    folder, name = _file(out, settings)
    inside = Folder.at(scores, settings.storage).path("version=")
    if folder.path(name).startswith(inside):
        raise ConfigError(
            f"{shown(out)} is among the rows of {shown(scores)}, of which it would be read as one; "
            "name a file elsewhere"
        )


def _file(out: str, settings: Settings) -> tuple[Folder, str]:
    folder, name = split_uri(out, settings.storage)
    if not name.lower().endswith(".parquet"):
        raise ConfigError(f"{shown(out)} is not the name of a Parquet file; end it with .parquet")
    return folder, name


@dataclass
class _Named:
    """The rows that have a part_id, and how many have and have not."""

    dataset: ScoreDataset
    named: int = 0
    unnamed: int = 0

    def read(self) -> Iterator[pa.Table]:
        whole = self.dataset
        files = list(whole.get_fragments())
        for start in range(0, len(files), _FILES_AT_ONCE):
            some = files[start : start + _FILES_AT_ONCE]
            dataset = ds.FileSystemDataset(some, whole.schema, whole.format, whole.filesystem)
            for batch in dataset.to_batches(columns=list(by_piece.COLUMNS)):
                rows = pa.Table.from_batches([batch])
                kept = rows.filter(rows.column("part_id").is_valid())
                self.named += len(kept)
                self.unnamed += len(rows) - len(kept)
                yield by_piece.of_images(kept)


def _false_alarm_rate(table: Folder, version: str, settings: Settings) -> float:
    if "false_alarm_rate" in settings.verdict.model_fields_set:
        return settings.verdict.false_alarm_rate
    recorded = [state.record for state in runs.read_runs(table)]
    of_version = [r for r in recorded if (r.verb, r.version) == ("score", version)]
    if not of_version:
        raise ConfigError(
            f"{table.root} has no record of a run that scored version '{version}', and so no rate "
            "of false alarms; give it with --set verdict.false_alarm_rate=0.01"
        )
    return of_version[-1].settings.verdict.false_alarm_rate


def _say_out_of_reach(parts: pa.Table, rate: float) -> None:
    beyond = by_piece.out_of_reach(parts, rate)
    for group, (pieces, fewest, floor) in list(beyond.items())[:_SHOWN]:
        log.warning(
            "group %s: none of %d parts of %d images or more is anomalous, nor can be by what this "
            "table has: the smallest p_value of the group is %g, and %d times that is above "
            "verdict.false_alarm_rate, %g; where judged_parts in model.json is below %d, fit on "
            "more parts or raise the rate",
            *(shown(group), pieces, fewest, floor, fewest, rate, parts_needed(rate / fewest)),
        )
    if len(beyond) > _SHOWN:
        log.warning("... and likewise %d more groups", len(beyond) - _SHOWN)
