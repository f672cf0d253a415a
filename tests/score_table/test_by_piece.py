"""One verdict a piece: laws of the merge, and an obvious implementation beside it."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.score_table import by_piece
from patchlake.pipeline.tables import PARTS, SCORES

SCHEMA = pa.schema([SCORES.field(name) for name in by_piece.COLUMNS])
DAY = datetime(2026, 1, 1, tzinfo=UTC)


def _image(number: int, group: str, part_id: str, score: float | None, p: float | None, day: int):
    return {
        "group": group,
        "part_id": part_id,
        "image_id": f"{number}.png",
        "source_path": f"{number % 3}.parquet",
        "source_row": number,
        "image_score": score,
        "p_value": None if score is None else p,
        "model_id": f"m{day % 2}",
        "scored_at": DAY + timedelta(days=day),
    }


scores = st.none() | st.sampled_from([1.0, 2.0]) | st.floats(0, 1e6, width=32)
p_values = st.none() | st.sampled_from([0.001, 0.01, 0.02]) | st.floats(0, 1, width=32)
images = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), scores, p_values, st.integers(0, 9)),
    max_size=40,
).map(lambda rows: [_image(number, *row) for number, row in enumerate(rows)])


def _table(rows: list[dict[str, object]]) -> pa.Table:
    return by_piece.of_images(pa.Table.from_pylist(rows, schema=SCHEMA))


def _expected(rows: list[dict[str, object]], rate: float) -> list[dict[str, object]]:
    by_key = defaultdict(list)
    for row in rows:
        by_key[row["group"], row["part_id"]].append(row)
    found = []
    for (group, part_id), of_piece in sorted(by_key.items()):
        scored = [row for row in of_piece if row["image_score"] is not None]
        tested = [row["p_value"] for row in scored if row["p_value"] is not None]
        order = {
            row["source_row"]: (
                *(2 if row["p_value"] is None else row["p_value"], -row["image_score"]),
                *(row["source_path"], row["source_row"]),
            )
            for row in scored
        }
        worst = min(scored, key=lambda row: order[row["source_row"]], default={})
        smallest = min(tested, default=None)
        models = sorted(row["model_id"] for row in of_piece)
        found.append(
            {
                "group": group,
                "part_id": part_id,
                "images": len(of_piece),
                "scored": len(scored),
                "tested": len(tested),
                "p_value": smallest and float(np.float32(min(1, len(tested) * smallest))),
                "is_anomalous": smallest
                if smallest is None
                else bool(np.float32(smallest) <= np.float32(rate / len(tested))),
                "worst_image_id": worst.get("image_id"),
                "worst_source_path": worst.get("source_path"),
                "worst_source_row": worst.get("source_row"),
                "worst_image_score": worst.get("image_score"),
                "worst_p_value": worst.get("p_value"),
                "model_id": worst.get("model_id", models[0]),
                "first_scored_at": min(row["scored_at"] for row in of_piece),
                "last_scored_at": max(row["scored_at"] for row in of_piece),
            }
        )
    return found


def _rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """As float32 has their numbers."""
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()


@given(images, st.sampled_from([0.01, 0.04, 0.5]))
def test_it_is_what_the_obvious_way_finds(rows, rate):
    found = by_piece.judged(by_piece.merged([_table(rows)]), rate)
    assert found.schema.equals(PARTS, check_metadata=True)
    assert found.to_pylist() == _expected(_rows(rows), rate)


def test_many_pieces_are_in_order_as_well():
    """Arrow numbers groups in an order of its own once there are some dozens."""
    rng = np.random.default_rng(0)
    rows = [
        _image(n, "ab"[n % 2], f"p{rng.integers(500)}", float(rng.random()), float(p), int(p * 9))
        for n, p in enumerate(rng.random(3000))
    ]
    found = by_piece.judged(by_piece.merged_batches(_table(rows[n::7]) for n in range(7)), 0.01)
    assert found.to_pylist() == _expected(_rows(rows), 0.01)


@given(images, st.data())
def test_any_cut_in_any_order_gives_the_same(rows, data):
    whole = by_piece.merged([_table(rows)])
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    pieces = [
        _table(shuffled[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]
    assert by_piece.merged(pieces) == whole
    assert by_piece.merged_batches(iter(pieces)) == whole
    # Associative, with the empty table as its identity.
    left = by_piece.merged([by_piece.merged(pieces[:2]), *pieces[2:]])
    assert left == by_piece.merged([whole, _table([])]) == whole


def test_batches_are_merged_as_they_come(monkeypatch):
    """What waits is bounded: 30 batches of one image of ten pieces."""
    monkeypatch.setattr(by_piece, "_PENDING_ROWS", 4)
    most = []
    true = by_piece.merged

    def watched(tables):
        most.append(sum(map(len, tables)))
        return true(tables)

    monkeypatch.setattr(by_piece, "merged", watched)
    rows = [_image(n, "a", f"p{n % 10}", float(n), 0.5, 0) for n in range(300)]
    found = by_piece.merged_batches(_table([row]) for row in rows)
    assert found == true([_table(rows)])
    assert max(most) <= 20


@given(images, st.sampled_from([0.01, 0.04, 0.5]))
def test_a_piece_with_one_image_more_that_is_good_is_no_more_anomalous(rows, rate):
    more = [*rows, _image(len(rows), "a", "x", 0.0, 1.0, 0)]
    before, after = (
        {
            (row["group"], row["part_id"]): row["is_anomalous"]
            for row in by_piece.judged(by_piece.merged([_table(some)]), rate).to_pylist()
        }
        for some in (rows, more)
    )
    if before.get(("a", "x")) is False:
        assert after["a", "x"] is False


@pytest.mark.parametrize("parts", [9, 99, 199, 999])
@pytest.mark.parametrize("views", [1, 3, 5, 7])
def test_a_rate_that_is_just_reached_is_reached(parts: int, views: int):
    """1/1000 as float32 is above 1/1000."""
    rows = [_image(n, "a", "x", 1.0, 1 / (parts + 1), 0) for n in range(views)]
    pieces = by_piece.merged([_table(rows)])
    for rate, is_reached in ((views / (parts + 1), True), (0.999 * views / (parts + 1), False)):
        found = by_piece.judged(pieces, rate)
        assert found.column("is_anomalous").to_pylist() == [is_reached]
        beyond = {} if is_reached else {"a": (1, views, pytest.approx(1 / (parts + 1)))}
        assert by_piece.out_of_reach(found, rate) == beyond


def test_what_has_too_many_images_is_counted_by_group():
    rows = [_image(0, "a", "x", 1.0, 0.004, 0), _image(1, "b", "x", 1.0, 0.5, 0)]
    rows += [_image(n, "a", f"p{n % 4}", 1.0, 1.0, 0) for n in range(10, 20)]
    rows += [_image(n, "c", "none", None, None, 0) for n in range(20, 30)]
    found = by_piece.judged(by_piece.merged([_table(rows)]), 0.01)
    floor = pytest.approx(0.004)
    # Of group a two pieces have three images, of which 3 * 0.004 is too much.
    assert by_piece.out_of_reach(found, 0.01) == {"a": (2, 3, floor), "b": (1, 1, 0.5)}


def test_pieces_that_are_good_are_seldom_called_anomalous_however_their_images_depend():
    """At 5 %, of images of one score, of independent ones, and of those in between."""
    rng = np.random.default_rng(2)
    for share in (0.0, 0.7, 1.0):
        called = []
        for _ in range(40):
            calibration = np.sort(rng.standard_normal(199))
            piece = rng.standard_normal((100, 1)) * np.sqrt(share)
            views = piece + rng.standard_normal((100, 3)) * np.sqrt(1 - share)
            p = (200 - np.searchsorted(calibration, views)) / 200
            rows = [
                _image(3 * x + y, "a", str(x), float(views[x, y]), float(p[x, y]), 0)
                for x in range(100)
                for y in range(3)
            ]
            found = by_piece.judged(by_piece.merged([_table(rows)]), 0.05)
            called.append(np.mean(found.column("is_anomalous").to_numpy(zero_copy_only=False)))
        assert 0.005 < np.mean(called) < 0.055


@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_what_is_no_p_value_is_refused(p: float):
    with pytest.raises(TableError, match=r"p_value of 0.parquet, row 0, is .* score it again"):
        _table([_image(0, "a", "x", 1.0, p, 0)])
