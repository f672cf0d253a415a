"""What reviews come to, beside a loop that is written as people would say it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.reviews.decided import decided
from patchlake.pipeline.reviews.table import VERDICTS
from patchlake.pipeline.tables import DECIDED
from tests.reviews.small import placed, review, reviews


@pytest.mark.parametrize(
    ("said", "verdict", "reviewers"),
    [
        ([("good", "ann", 0)], "good", 1),
        ([("good", "ann", 0), ("defective", "ann", 1)], "defective", 1),
        ([("defective", "ann", 1), ("good", "ann", 0)], "defective", 1),
        ([("good", "ann", 0), ("defective", "bob", 1)], "disputed", 2),
        ([("good", "ann", 0), ("good", "bob", 1)], "good", 2),
        ([("good", "ann", 0), ("unsure", "bob", 1)], "good", 1),
        ([("unsure", "ann", 0)], "unsure", 0),
        # Whoever is no longer sure takes back what they said.
        ([("good", "ann", 0), ("unsure", "ann", 1)], "unsure", 0),
        ([("good", "ann", 0), ("defective", "bob", 0), ("unsure", "ann", 1)], "defective", 1),
        # Two things at the same time are a dispute with oneself.
        ([("good", "ann", 0), ("defective", "ann", 0)], "disputed", 1),
        # Both come round.
        ([("good", "ann", 0), ("defective", "bob", 0), ("defective", "ann", 2)], "defective", 2),
    ],
)
def test_one_image(said, verdict, reviewers):
    (row,) = decided(reviews(*(placed(0, *one) for one in said))).to_pylist()
    assert (row["verdict"], row["reviewers"]) == (verdict, reviewers)


def test_an_image_is_told_by_its_place_or_else_by_its_group_and_id():
    found = decided(
        reviews(
            placed(1, "good", image_id="same"),
            placed(2, "defective", "bob", image_id="same"),
            review("same", "good"),
            review("same", "defective", "bob", group="other"),
            review("same", "unsure", "bob", group=None),
        )
    )
    assert found.schema.equals(DECIDED)
    assert found.select(["group", "source_row", "verdict"]).to_pylist() == [
        {"group": None, "source_row": None, "verdict": "unsure"},
        {"group": "other", "source_row": None, "verdict": "defective"},
        {"group": "tile", "source_row": None, "verdict": "good"},
        {"group": "tile", "source_row": 1, "verdict": "good"},
        {"group": "tile", "source_row": 2, "verdict": "defective"},
    ]


def test_reviews_of_a_file_that_was_replaced_since_do_not_count():
    found = decided(
        reviews(
            placed(0, "defective", "ann", 0, sha256="old"),
            placed(0, "good", "bob", 1, sha256="new"),
            placed(0, "good", "eve", 0),
        )
    )
    (row,) = found.to_pylist()
    assert (row["verdict"], row["reviewers"], row["sha256"]) == ("good", 2, "new")


def test_the_last_review_that_tells_something_tells_it():
    found = decided(
        reviews(
            placed(0, "good", "ann", 0, is_anomalous=True, image_score=2.0, scores="/s"),
            placed(0, "good", "ann", 1, is_anomalous=False),
        )
    )
    (row,) = found.to_pylist()
    assert (row["is_anomalous"], row["image_score"], row["scores"]) == (False, 2.0, "/s")


_ROWS = st.builds(
    placed,
    st.integers(0, 2),
    st.sampled_from(VERDICTS),
    st.sampled_from(["ann", "bob", "eve"]),
    st.integers(0, 3),
    sha256=st.sampled_from([None, "a", "b"]),
    is_anomalous=st.sampled_from([None, True, False]),
    root=st.sampled_from([None, "/lake"]),
)


@given(st.lists(_ROWS, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_show(rows, order: random.Random):
    found = decided(reviews(*rows))
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert decided(reviews(*shuffled)).equals(found)
    assert found.column("verdict").to_pylist() == [
        _oracle([one for one in rows if _image(one) == _image(row)]) for row in found.to_pylist()
    ]


def _image(row):
    return row["root"], row["source_row"]


def _oracle(rows) -> str:
    """Return the verdict on one image."""
    contents = [(r["reviewed_at"], r["sha256"]) for r in rows if r["sha256"]]
    rows = [r for r in rows if not contents or r["sha256"] in (None, max(contents)[1])]
    words = set()
    for reviewer in {r["reviewer"] for r in rows}:
        own = [r for r in rows if r["reviewer"] == reviewer]
        last = max(r["reviewed_at"] for r in own)
        words |= {r["verdict"] for r in own if r["reviewed_at"] == last}
    words.discard("unsure")
    return {0: "unsure", 1: next(iter(words), ""), 2: "disputed"}[len(words)]
