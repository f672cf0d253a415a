"""The first rows of each night, against sorting all of them."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.report.pools import Pool, Row, Rows

ROWS = st.lists(
    st.tuples(
        st.integers(-4, 4).map(float), st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2)
    ),
    max_size=60,
    unique_by=lambda row: row[:3],
)


def _columns(rows: list[Row]) -> Rows:
    kinds = (np.float64, object, np.int64, np.int64, np.int64, np.int64)
    columns = zip(*rows, strict=True) if rows else [[]] * 6
    return Rows(*(np.array(list(c), kind) for c, kind in zip(columns, kinds, strict=True)))


def _expected(rows: list[Row], per_group: int, total: int) -> list[Row]:
    """Return the slow way: the fair ones first, filled up with what comes next."""
    taken: Counter[int] = Counter()
    fair = []
    for row in sorted(rows):
        if taken[row.group] < per_group and len(fair) < total:
            taken[row.group] += 1
            fair.append(row)
    rest = [row for row in sorted(rows) if row not in fair]
    return sorted(fair + rest[: total - len(fair)])


@given(ROWS, st.integers(1, 3), st.integers(1, 6), st.integers(1, 10))
def test_the_first_rows_are_those_of_all(
    drawn: list[tuple[float, str, int, int]], per_group: int, total: int, cut: int
) -> None:
    rows = [
        Row(rank, path, number, group, (number + group) % 2, 0)
        for rank, path, number, group in drawn
    ]
    pool = Pool(per_group, total)
    for begin in range(0, len(rows), cut):
        pool.offer(_columns(rows[begin : begin + cut]))
    for night in (0, 1):
        of_night = [row for row in rows if row.night == night]
        assert pool.of_night(night) == _expected(of_night, per_group, total)
    assert pool.of_others(1, total) == pool.of_night(0)
