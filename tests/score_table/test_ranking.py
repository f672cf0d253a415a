"""ranking: the rows that are looked at first, against a slow sort of all of them."""

import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.score_table.ranking import ORDERS, Ranking, hashes

KINDS = {
    "group": pa.string(),
    "source_path": pa.string(),
    "source_row": pa.int64(),
    "image_score": pa.float32(),
    "p_value": pa.float32(),
    "threshold": pa.float32(),
    "is_anomalous": pa.bool_(),
}
SCHEMA = pa.schema(list(KINDS.items()))


def rows() -> st.SearchStrategy[list[dict[str, object]]]:
    """Rows of three groups with verdicts and one without; some images have no score."""
    scores = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]))
    one = st.tuples(st.sampled_from("abc-"), scores, st.sampled_from([0.01, 0.02, 0.5]))
    return st.lists(one, max_size=60).map(
        lambda drawn: [row(number, *each) for number, each in enumerate(drawn)]
    )


def row(number: int, group: str, score: float | None, p_value: float) -> dict[str, object]:
    threshold = {"a": 1.0, "b": 2.0, "c": 1.25}.get(group)
    judged = score is not None and threshold is not None
    return {
        "group": group,
        "source_path": f"{number % 3}.parquet",
        "source_row": number // 3,
        "image_score": score,
        "p_value": p_value if judged else None,
        "threshold": threshold,
        "is_anomalous": score > threshold if judged else None,
    }


def slow_worst(given_rows: list[dict]) -> list[dict]:
    scored = [r for r in given_rows if r["image_score"] is not None]
    place = lambda r: (r["group"], r["source_path"], r["source_row"])  # noqa: E731
    judged = [r for r in scored if r["is_anomalous"] is not None]
    judged.sort(
        key=lambda r: (
            *(not r["is_anomalous"], np.float32(r["p_value"])),
            *(-r["image_score"] / r["threshold"], place(r)),
        )
    )
    turns = []
    for group in {r["group"] for r in scored}:
        own = [r for r in scored if r["group"] == group and r["is_anomalous"] is None]
        own.sort(key=lambda r: (-r["image_score"], place(r)))
        turns += [(turn, r) for turn, r in enumerate(own)]
    turns.sort(key=lambda pair: (pair[0], -pair[1]["image_score"], place(pair[1])))
    return judged + [r for _, r in turns]


def table(some: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(some, schema=SCHEMA)


def places(found: pa.Table) -> list[tuple[str, int]]:
    columns = (found.column(name).to_pylist() for name in ("source_path", "source_row"))
    return list(zip(*columns, strict=True))


@given(rows(), st.integers(1, 30), st.integers(1, 20))
def test_the_worst_are_those_of_a_sort_of_all(drawn: list[dict], count: int, size: int) -> None:
    pieces = [table(drawn[at : at + size]) for at in range(0, len(drawn), size)]
    found = Ranking("worst", count).first_of(pieces)
    expected = [(r["source_path"], r["source_row"]) for r in slow_worst(drawn)]
    assert places(found) == expected[:count]


@given(rows(), st.integers(1, 30))
def test_the_nearest_are_those_of_a_sort_of_all(drawn: list[dict], count: int) -> None:
    judged = [r for r in drawn if r["image_score"] is not None and r["threshold"] is not None]
    judged.sort(
        key=lambda r: (
            abs(r["image_score"] / r["threshold"] - 1),
            *(r["group"], r["source_path"], r["source_row"]),
        )
    )
    found = Ranking("near", count).first_of([table(drawn)])
    assert places(found) == [(r["source_path"], r["source_row"]) for r in judged][:count]


@pytest.mark.parametrize("order", ORDERS)
@given(drawn=rows(), shuffle=st.randoms(use_true_random=False))
def test_no_order_hangs_on_the_order_of_rows_and_batches(
    order: str, drawn: list[dict], shuffle: random.Random
) -> None:
    whole = Ranking(order, 10).first_of([table(drawn)])
    shuffled = list(drawn)
    shuffle.shuffle(shuffled)
    cut = shuffle.randint(0, len(drawn))
    pieces = [table(shuffled[:cut]), table(shuffled[cut:])]
    assert Ranking(order, 10).first_of(pieces).equals(whole)


def test_many_batches_are_ranked_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchlake.pipeline.score_table.ranking._PENDING_ROWS", 8)
    drawn = [
        row(n, "ab-"[n % 3], 1 + (n * 7919 % 997) / 100, 0.01 * (1 + n % 5)) for n in range(999)
    ]
    for order in ORDERS:
        pieces = [table(drawn[at : at + 13]) for at in range(0, 999, 13)]
        whole = Ranking(order, 25).first_of([table(drawn)])
        assert Ranking(order, 25).first_of(pieces).equals(whole)


def test_the_first_of_a_random_order_are_a_sample() -> None:
    """Of 400 rows, 100 are anomalous: among the first 40 of 300 seeds they are a quarter."""
    drawn = [row(n, "a", 3.0 if n % 4 == 0 else 0.5, 0.01) for n in range(400)]
    shares = []
    for seed in range(300):
        found = Ranking("random", 40, seed).first_of([table(drawn)])
        shares.append(np.mean(found.column("is_anomalous").to_pylist()))
    # Of a hypergeometric count with 40 draws: standard deviation 2.6 of 40, over 300 seeds.
    assert abs(np.mean(shares) - 0.25) < 4 * 0.065 / math.sqrt(300)
    assert 0.05 < np.std(shares) < 0.08


def test_hashes_are_even() -> None:
    numbers = hashes(table([row(n, "a", 1.0, 0.1) for n in range(30_000)]), seed=7)
    counts, _ = np.histogram(numbers, 20, (0, 1))
    assert len(set(numbers)) == 30_000
    # Chi-squared with 19 degrees of freedom: 99.9 % are below 44.
    assert ((counts - 1500) ** 2 / 1500).sum() < 44
