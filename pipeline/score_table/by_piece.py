"""Rows of the score table by the piece that they are of (`part_id`): a verdict from all its views.

A piece is defective if any of its views shows it. Its p-value, from those of its `m` images, is
`min(1, m * min p)`, Bonferroni's, so that one anomalous image of many need not make it anomalous.
It is valid however the images depend on one another, since for a good piece
`P(min p <= a / m) <= sum P(p <= a / m) <= a`. Images of one piece depend on one another strongly,
and then it is larger than it need be: that is its price, in power.
(Vovk and Wang, "Combining p-values via averaging", Biometrika 107, 2020, compare others.)

What is kept of the images that were read is one row a piece. Two such tables merge into one, in
any order and cut, so that a table of any length is read by batches.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.tables import PARTS

KEY = (("group", "ascending"), ("part_id", "ascending"))
COLUMNS = (
    *("group", "part_id", "image_id", "source_path", "source_row"),
    *("image_score", "p_value", "model_id", "scored_at"),
)
_COUNTS = ("images", "scored", "tested")
# The first of a piece's rows in this order is its worst. Nulls are last.
_WORST_FIRST = (
    *KEY,
    ("worst_p_value", "ascending"),
    ("worst_image_score", "descending"),
    ("worst_source_path", "ascending"),
    ("worst_source_row", "ascending"),
    ("model_id", "ascending"),
)
_WORST = ("image_id", "source_path", "source_row", "image_score", "p_value")
_KEPT = pa.schema([f for f in PARTS if f.name not in ("p_value", "is_anomalous")])
# Of rows that wait to be merged, at the least: 20 MB of them.
_PENDING_ROWS = 2**17


def of_images(rows: pa.Table) -> pa.Table:
    """Return images, each as a piece that has no other image.

    Args:
        rows: `COLUMNS` of a score table; `part_id` is not null.

    Raises:
        TableError: if a p_value is not within 0 and 1.
    """
    p_values = rows.column("p_value")
    within = pc.and_(pc.greater_equal(p_values, 0), pc.less_equal(p_values, 1))
    if pc.all(within).as_py() is False:
        row = rows.filter(pc.invert(within)).slice(0, 1).to_pylist()[0]
        raise TableError(
            f"p_value of {row['source_path']}, row {row['source_row']}, is {row['p_value']}, and "
            "not within 0 and 1; score it again"
        )
    scored = rows.column("image_score").is_valid()
    found = {
        "group": rows.column("group"),
        "part_id": rows.column("part_id"),
        "images": pa.array(np.ones(len(rows), np.int64)),
        "scored": scored.cast(pa.int64()),
        "tested": pc.and_(scored, p_values.is_valid()).cast(pa.int64()),
        "model_id": rows.column("model_id"),
        "first_scored_at": rows.column("scored_at"),
        "last_scored_at": rows.column("scored_at"),
    }
    for name in _WORST:
        column = rows.column(name)
        # What has no score is not the worst of anything.
        found[f"worst_{name}"] = pc.if_else(scored, column, pa.scalar(None, column.type))
    return pa.table([found[name] for name in _KEPT.names], schema=_KEPT)


def merged(tables: Iterable[pa.Table]) -> pa.Table:
    """Return one row a piece from tables that have several, sorted by group and piece.

    Associative and commutative: rows are summed and the worst is the least of a total order.
    """
    rows = pa.concat_tables(tables)
    rows = rows.take(pc.sort_indices(rows, sort_keys=list(_WORST_FIRST)))
    numbered = rows.append_column("at", pa.array(np.arange(len(rows))))
    summed = numbered.group_by([name for name, _ in KEY], use_threads=False).aggregate(
        [
            ("at", "min"),
            *((name, "sum") for name in _COUNTS),
            ("first_scored_at", "min"),
            ("last_scored_at", "max"),
        ]
    )
    # The order of the groups is Arrow's own.
    summed = summed.sort_by("at_min")
    worst = rows.take(summed.column("at_min"))
    found = {name: summed.column(f"{name}_sum") for name in _COUNTS}
    found["first_scored_at"] = summed.column("first_scored_at_min")
    found["last_scored_at"] = summed.column("last_scored_at_max")
    columns = [found.get(name, worst.column(name)) for name in _KEPT.names]
    return pa.table(columns, schema=_KEPT).combine_chunks()


def merged_batches(tables: Iterator[pa.Table]) -> pa.Table:
    """Return one row a piece; at most as many rows again, or 131,072, wait to be merged."""
    kept = _KEPT.empty_table()
    pending: list[pa.Table] = []
    waiting = 0
    for table in tables:
        pending.append(table)
        waiting += len(table)
        if waiting >= max(_PENDING_ROWS, len(kept)):
            kept, pending, waiting = merged([kept, *pending]), [], 0
    return merged([kept, *pending])


def judged(pieces: pa.Table, false_alarm_rate: float) -> pa.Table:
    """Return pieces with their p-value and verdict, as `PARTS`.

    A piece is anomalous where its smallest p-value is at most `false_alarm_rate / tested`, both as
    float32: 1/1000 as float32 is above 1/1000, and is to be within a rate of 1/1000.

    Args:
        pieces: As `merged` returns them.
        false_alarm_rate: Above 0, below 1.
    """
    smallest = pieces.column("worst_p_value")
    tested = pieces.column("tested").to_numpy()
    times = pc.multiply(smallest.cast(pa.float64()), pa.array(tested.astype(np.float64)))
    p_value = pc.min_element_wise(times, 1.0, skip_nulls=False).cast(pa.float32())
    is_anomalous = pc.less_equal(smallest, pa.array(_level(tested, false_alarm_rate)))
    found = {"p_value": p_value, "is_anomalous": is_anomalous}
    columns = [found[n] if n in found else pieces.column(n) for n in PARTS.names]
    return pa.table(columns, schema=PARTS)


def out_of_reach(parts: pa.Table, false_alarm_rate: float) -> dict[str, tuple[int, int, float]]:
    """Return, by group, what has so many images that no p-value of it would be small enough.

    As conformal p-values are not below `1 / (K + 1)`, with `K` pieces to calibrate on, a piece of
    `m` images is never anomalous where `m / (K + 1)` is above the rate. `K` is not in the table:
    the smallest p-value of the group stands for `1 / (K + 1)`, which it may be above.

    Args:
        parts: As `judged` returns them.
        false_alarm_rate: As of `judged`.

    Returns:
        Group -> number of such pieces, the fewest images that one has, and the smallest p-value.
    """
    tested = parts.filter(pc.greater(parts.column("tested"), 0)).select(
        ["group", "tested", "worst_p_value"]
    )
    floors = tested.group_by("group").aggregate([("worst_p_value", "min")])
    place = pc.index_in(tested.column("group"), value_set=floors.column("group").combine_chunks())
    floor = floors.column("worst_p_value_min").take(place)
    level = pa.array(_level(tested.column("tested").to_numpy(), false_alarm_rate))
    beyond = tested.append_column("floor", floor).filter(pc.greater(floor, level))
    counted = beyond.group_by("group").aggregate(
        [("tested", "count"), ("tested", "min"), ("floor", "min")]
    )
    rows = counted.sort_by("group").to_pylist()
    return {r["group"]: (r["tested_count"], r["tested_min"], r["floor_min"]) for r in rows}


def _level(tested: np.ndarray, false_alarm_rate: float) -> np.ndarray:
    level: np.ndarray = (false_alarm_rate / np.maximum(tested, 1)).astype(np.float32)
    return level


def require_part_id(names: Iterable[str], table: str) -> None:
    """Raise `TableError` if a score table was written before there was a `part_id`."""
    if "part_id" not in names:
        raise TableError(
            f"{table} has no column part_id: it was scored by an earlier release; "
            f"`patchlake score` it into another folder. {SAY_PARTS}"
        )


SAY_PARTS = (
    "What an image is of is said by a column part_id of the manifest that is ingested, or of your "
    "own table (--set columns.part_id=NAME)"
)
