"""Which rows of a score table a person looks at first: the worst, the nearest, or any.

Scores of two groups do not compare, as each has a model of its own. p-values do, and so does a
score in units of its group's threshold. Rows are ranked by these:

    worst    anomalous ones first, by p-value, then by score / threshold. Rows without a verdict
             come last: each group's by score, and groups take turns
    near     by how far score / threshold is from 1; rows without a threshold are left out
    random   by a hash of where the image is: a sample that does not depend on the order of rows,
             of which the first rows are a sample as well

Rows without a score are none of them. What is kept of the rows that were read is as many as are
asked for; of rows without a verdict, of each group.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.score_table.splitmix import mixed

RowOrder = Literal["worst", "near", "random"]
ORDERS: tuple[RowOrder, ...] = get_args(RowOrder)

COLUMNS = (
    *("group", "source_path", "source_row", "image_score"),
    *("p_value", "threshold", "is_anomalous"),
)
_PLACE = (("group", "ascending"), ("source_path", "ascending"), ("source_row", "ascending"))
# What rows are ranked by: the least of each comes first.
_KEYS = ("_tier", "_first", "_second")
_JUDGED, _UNJUDGED = 1, 2
# Rows that wait to be ranked, at the least.
_PENDING_ROWS = 2**16


@dataclass(frozen=True)
class Ranking:
    """The order of rows, and how many of them are kept."""

    order: RowOrder
    count: int
    seed: int = 0

    def first_of(self, tables: Iterable[pa.Table]) -> pa.Table:
        """Return the first rows of tables in this order, with all columns that they have.

        Args:
            tables: `COLUMNS` of a score table, and others.
        """
        kept: list[pa.Table] = []
        waiting = 0
        for table in tables:
            kept.append(self._keyed(table))
            waiting += len(kept[-1])
            if waiting >= max(_PENDING_ROWS, 2 * len(kept[0])):
                kept, waiting = [self._first(pa.concat_tables(kept))], 0
        if not kept:
            return pa.table({name: [] for name in COLUMNS})
        return self._first(pa.concat_tables(kept)).slice(0, self.count).drop_columns(list(_KEYS))

    def _keyed(self, table: pa.Table) -> pa.Table:
        """Return the rows that are ranked, with what they are ranked by."""
        rows = table.filter(table.column("image_score").is_valid())
        if self.order == "near":
            rows = rows.filter(rows.column("threshold").is_valid())
        if self.order == "random":
            nothing = np.zeros(len(rows))
            return _with(rows, nothing, hashes(rows, self.seed), nothing)
        relative = _relative(rows)
        if self.order == "near":
            nothing = np.zeros(len(rows))
            return _with(rows, nothing, np.abs(relative - 1), nothing)
        verdict = _numbers(rows.column("is_anomalous").cast(pa.float64()), np.nan)
        tier = np.where(np.isnan(verdict), _UNJUDGED, _JUDGED - (verdict == 1))
        # Of rows without a verdict, the place within the group comes later.
        first = _numbers(rows.column("p_value"), np.inf)
        score = _numbers(rows.column("image_score"), np.nan)
        return _with(rows, tier, first, -np.where(tier == _UNJUDGED, score, relative))

    def _first(self, rows: pa.Table) -> pa.Table:
        if self.order == "worst":
            rows = self._in_turns(rows)
        keys = [*((name, "ascending") for name in _KEYS), *_PLACE]
        taken = rows.sort_by(keys)
        judged = int((taken.column("_tier").to_numpy() < _UNJUDGED).sum())
        # Those without a verdict are sorted last: they are kept while they may still be needed.
        return taken.slice(0, self.count) if judged >= self.count else taken

    def _in_turns(self, rows: pa.Table) -> pa.Table:
        """Return rows, of which those without a verdict are ranked by their place in the group."""
        is_judged = pc.less(rows.column("_tier"), _UNJUDGED)
        judged, others = rows.filter(is_judged), rows.filter(pc.invert(is_judged))
        judged = judged.take(pc.sort_indices(judged, sort_keys=_ascending(_KEYS))[: self.count])
        others = others.sort_by([_PLACE[0], ("_second", "ascending"), *_PLACE[1:]])
        groups = others.column("group").combine_chunks().dictionary_encode().indices.to_numpy()
        begins = np.flatnonzero(np.diff(groups, prepend=-1))
        turn = np.arange(len(others)) - np.repeat(begins, np.diff([*begins, len(others)]))
        at = others.column_names.index("_first")
        others = others.set_column(at, "_first", pa.array(turn, pa.float64()))
        return pa.concat_tables([judged, others.filter(pa.array(turn < self.count))])


def _ascending(names: Iterable[str]) -> list[tuple[str, str]]:
    return [*((name, "ascending") for name in names), *_PLACE]


def _with(rows: pa.Table, *keys: np.ndarray) -> pa.Table:
    for name, values in zip(_KEYS, keys, strict=True):
        rows = rows.append_column(name, pa.array(values, pa.float64()))
    return rows


def _numbers(column: pa.ChunkedArray, otherwise: float) -> np.ndarray:
    filled = pc.fill_null(column.cast(pa.float64()), otherwise)
    return np.asarray(filled.to_numpy())


def _relative(rows: pa.Table) -> np.ndarray:
    """Return scores in units of their threshold; 1 is at the threshold. Without one: -inf."""
    score = _numbers(rows.column("image_score"), np.nan)
    threshold = _numbers(rows.column("threshold"), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(threshold > 0, score / threshold, np.where(score > threshold, 2, 0))
    return np.where(np.isnan(threshold), -np.inf, relative)


def hashes(rows: pa.Table, seed: int) -> np.ndarray:
    """Return a number from 0 to 1 for each row, evenly spread, by its place and a seed alone."""
    encoded = rows.column("source_path").combine_chunks().dictionary_encode()
    of_paths = np.array(
        [_of_path(path, seed) for path in encoded.dictionary.to_pylist()], np.uint64
    )
    paths = of_paths[encoded.indices.to_numpy()] if len(rows) else of_paths
    numbers = rows.column("source_row").to_numpy().astype(np.uint64)
    # 53 bits are what a float64 holds.
    return (mixed(paths ^ mixed(numbers)) >> np.uint64(11)).astype(np.float64) / 2.0**53


@lru_cache(4096)
def _of_path(path: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{path}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")
