"""How reviews find the images of a model, and what they count as."""

import pyarrow as pa
import pytest

from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.groups.reviewed import ReviewCounts, ReviewedMembers, count_reviews
from patchlake.pipeline.tables import DECIDED, TRAINING_IMAGES

ROOTS = ("/first", "/second")


def member(row: int, **more: object) -> dict[str, object]:
    return {
        **dict.fromkeys(TRAINING_IMAGES.names),
        "image_id": f"{row}.png",
        "source_path": "a.parquet",
        "source_row": row,
        "source_version": "v",
        "joined": 0,
        "sha256": f"content {row}",
        **more,
    }


def members(*rows: dict[str, object]) -> ReviewedMembers:
    table = pa.Table.from_pylist(list(rows), schema=TRAINING_IMAGES)
    return ReviewedMembers.of("tile", Membership.stored(table), ROOTS)


def decision(image_id: str, verdict: str = "defective", **more: object) -> dict[str, object]:
    return dict.fromkeys(DECIDED.names) | {"image_id": image_id, "verdict": verdict} | more


def placed(row: int, verdict: str = "defective", **more: object) -> dict[str, object]:
    place = {"root": "/first", "source_path": "a.parquet", "source_row": row}
    return decision(f"{row}.png", verdict, **place) | more


# The first has left; two are called the same.
MODEL = members(
    member(0, left=1),
    member(1),
    member(2, joined=1),
    member(3, sha256=None),
    member(4, image_id="same"),
    member(5, image_id="same"),
)


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        (placed(1), [0]),
        (placed(1, sha256="content 1"), [0]),
        # Another picture is there by now, or was when it was looked at.
        (placed(1, sha256="another"), []),
        (placed(1, image_id="another.png"), []),
        # The same picture, wherever it lies.
        (placed(9, root="/third", sha256="content 1"), [0]),
        (placed(1, root="/third"), []),
        # It joined from another lake.
        (placed(2), []),
        (placed(2, root="/second"), [1]),
        (placed(3, sha256="not known"), [2]),
        (placed(3, sha256="not known", image_id="another.png"), []),
        (placed(1, group="tile"), [0]),
        (placed(1, group="other"), []),
        (decision("1.png"), [0]),
        (decision("1.png", sha256="another"), []),
        (decision("1.png", group="other"), []),
        (decision("same"), []),
        (decision("same", sha256="content 5"), [4]),
        # It has left.
        (placed(0), []),
        (decision("nobody"), []),
    ],
)
def test_an_image_is_found_by_place_content_or_name(said, numbers):
    assert MODEL.numbers([said]).tolist() == numbers


def test_only_an_image_id_that_several_have_is_ambiguous():
    assert MODEL.is_ambiguous(decision("same"))
    assert not MODEL.is_ambiguous(decision("same", group="other"))
    assert not MODEL.is_ambiguous(decision("same", sha256="content 5"))
    assert not MODEL.is_ambiguous(decision("1.png"))


def test_what_is_not_learnt_is_counted_by_group():
    said = [
        # Learnt, or nothing to learn.
        placed(1, "good", is_anomalous=True),
        placed(7, "good", is_anomalous=False),
        placed(8, "defective"),
        # Not yet.
        placed(9, "good", is_anomalous=True, group="tile"),
        placed(10, "good", group="tile"),
        placed(0, "good", is_anomalous=True),
        placed(2, "defective", root="/second"),
        decision("11.png", "unsure", group="tile"),
        decision("12.png", "disputed"),
    ]
    assert count_reviews(said, [MODEL]) == {
        "": ReviewCounts(disputed=1),
        "tile": ReviewCounts(
            false_alarms_not_in_model=2, withdrawn_before=1, defective_in_model=1, unsure=1
        ),
    }
