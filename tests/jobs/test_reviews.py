"""The loop: a night is scored, a person decides, the model learns, and the next night is better."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, learning, lineage, score, update
from patchlake.pipeline.driver.changes import say_changed
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.reviews.table import append
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import REVIEWS
from tests.conftest import LOCAL, TINY, TINY_FLAGS, Store, by_place, soak
from tests.jobs.test_methods import settings_of
from tests.small import UPDATABLE

# Of twelve parts, four score higher than the threshold or as high.
RATE = {"verdict": {"false_alarm_rate": 0.4}}
FLAGS = (*TINY_FLAGS, "--set", "verdict.false_alarm_rate=0.4")
BAD = "woven_cloth/train/good/004.png"
Row = Mapping[str, object]


def tiny(**sections: object) -> Settings:
    return load_settings(flags=TINY | RATE | sections)


def is_good(row: Row) -> bool:
    return "/good/" in str(row["image_id"])


def is_test(row: Row) -> bool:
    return "/test/" in str(row["image_id"])


@dataclass(frozen=True)
class Night:
    """A model, a night's scores, and what a person in the morning can say of them."""

    images: Path
    model: Path
    rows: Sequence[Row]

    @property
    def false_alarms(self) -> list[Row]:
        return [row for row in self.rows if is_test(row) and is_good(row) and row["is_anomalous"]]

    def row(self, image_id: str) -> Row:
        return next(row for row in self.rows if row["image_id"] == image_id)

    def review(self, row: Row, verdict: str, **more: object) -> dict[str, object]:
        """Return what the page writes of a row that a person has looked at."""
        told = {name: row[name] for name in REVIEWS.names if name in row}
        at = datetime(2026, 1, 2, tzinfo=UTC)
        said = {"verdict": verdict, "reviewer": "ann", "reviewed_at": at, "regions": None}
        return {**told, "root": str(self.images), **said, **more}


def write(folder: Path, *rows: Mapping[str, object]) -> str:
    append(Folder.at(str(folder)), pa.Table.from_pylist(list(rows), schema=REVIEWS))
    return str(folder)


def scored(images: Path, model: Path, folder: Path, settings: Settings) -> list[Row]:
    quiet = settings.model_copy(
        update={"score": settings.score.model_copy(update={"heatmaps": "none"})}
    )
    score.run(str(images), str(model), str(folder), quiet, LOCAL)
    return [row for _, row in sorted(by_place(folder).items())]


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    root = tmp_path_factory.mktemp("night")
    fit.run(str(images), str(root / "model"), tiny(), LOCAL)
    return Night(images, root / "model", scored(images, root / "model", root / "scores", tiny()))


@pytest.fixture
def night(first: Night, tmp_path: Path) -> Night:
    """A copy of the model, which a test may change."""
    return Night(first.images, Path(shutil.copytree(first.model, tmp_path / "model")), first.rows)


def members(model: Path, group: str) -> list[Row]:
    record = read_manifest(Folder(str(model))).groups[group]
    name = next(file.name for file in record.files if file.role == "images.parquet")
    return pq.read_table(model / name, partitioning=None).to_pylist()


def present(model: Path, group: str) -> set[str]:
    return {str(row["image_id"]) for row in members(model, group) if row["left"] is None}


def test_a_morning(night: Night, tmp_path: Path, patchlake):
    """The commands that a person types."""
    alarm, bad = night.false_alarms[0], night.row(BAD)
    others = [row for row in night.rows if is_test(row) and not is_good(row)]
    reviews = write(
        tmp_path / "reviews",
        night.review(alarm, "good"),
        night.review(bad, "defective"),
        night.review(others[0], "defective"),
        night.review(others[1], "unsure"),
        night.review(others[2], "good"),
        night.review(others[2], "defective", reviewer="bob"),
    )
    said = json.loads(patchlake("status", night.model, "--reviews", reviews, "--json").out)
    groups = said[-1]["reviews"]
    assert sum(one["false_alarms_not_in_model"] for one in groups.values()) == 1
    assert groups["woven_cloth"]["defective_in_model"] == 1
    assert sum(one["unsure"] for one in groups.values()) == 1
    assert sum(one["disputed"] for one in groups.values()) == 1

    learnt = patchlake("fit", night.images, night.model, "--update", "--reviews", reviews, *FLAGS)
    assert learnt.code == 0, learnt.err
    assert "5 images are reviewed: 1 good (1 of them false alarms of this lake)" in learnt.err
    assert "2 defective, 1 disputed, 1 unsure" in learnt.err
    group = str(alarm["group"])
    assert alarm["image_id"] in present(night.model, group)
    assert BAD not in present(night.model, "woven_cloth")
    steps = read_manifest(Folder(str(night.model))).lineage
    assert [step.verb for step in steps] == ["fit", "withdraw", "update"]
    taken = [step.reviews for step in steps[1:]]
    assert [(one.folder, one.images) for one in taken if one] == [(reviews, 5)] * 2
    assert taken[0] == taken[1]
    assert steps[0].reviews is None

    again = scored(night.images, night.model, tmp_path / "again", tiny())
    now = next(row for row in again if row["image_id"] == alarm["image_id"])
    assert alarm["is_anomalous"] is True
    assert now["is_anomalous"] is False
    assert now["image_score"] < alarm["image_score"]

    before = (night.model / "model.json").read_bytes()
    twice = patchlake("fit", night.images, night.model, "--update", "--reviews", reviews, *FLAGS)
    assert twice.code == 0, twice.err
    assert (night.model / "model.json").read_bytes() == before
    shown = patchlake("status", night.model, "--reviews", reviews)
    assert "reviews that the model has not learnt" in shown.out
    said = json.loads(patchlake("status", night.model, "--reviews", reviews, "--json").out)
    groups = said[-1]["reviews"]
    assert sum(one["false_alarms_not_in_model"] for one in groups.values()) == 0
    assert groups["woven_cloth"]["defective_in_model"] == 0
    assert sum(one["disputed"] for one in groups.values()) == 1


def test_a_csv_of_two_columns_is_enough(night: Night, tmp_path: Path, patchlake):
    path = tmp_path / "monday.csv"
    alarm = night.false_alarms[0]
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerows([("image_id", "verdict"), (alarm["image_id"], "good"), (BAD, "Defective")])
        writer.writerow(("nobody.png", "good"))
    learnt = patchlake("fit", night.images, night.model, "--update", "--reviews", path, *FLAGS)
    assert learnt.code == 0, learnt.err
    assert "left out are 1 reviewed image of no row of these images" in learnt.err
    assert alarm["image_id"] in present(night.model, str(alarm["group"]))
    assert BAD not in present(night.model, "woven_cloth")


def learn(night: Night, reviews: str, execution: Execution = LOCAL) -> Manifest:
    return learning.run(str(night.images), str(night.model), reviews, tiny(), execution)


def test_only_false_alarms_that_somebody_confirmed_join(night: Night, tmp_path: Path):
    quiet = next(r for r in night.rows if is_test(r) and is_good(r) and not r["is_anomalous"])
    alarm = night.false_alarms[0]
    before = (night.model / "model.json").read_bytes()
    reviews = write(
        tmp_path / "reviews",
        # Good, but no alarm: there is nothing to learn.
        night.review(quiet, "good"),
        night.review(alarm, "unsure"),
        night.review(alarm, "good", root="/another/lake"),
    )
    learn(night, reviews)
    assert (night.model / "model.json").read_bytes() == before
    # Nobody says whether it was one.
    other = write(tmp_path / "other", night.review(quiet, "good", is_anomalous=None))
    learn(night, other)
    assert quiet["image_id"] in present(night.model, str(quiet["group"]))


def test_a_file_that_has_changed_since_is_not_taken(night: Night, tmp_path: Path, caplog):
    alarm, other = night.false_alarms[0], night.row(BAD)
    reviews = write(
        tmp_path / "reviews",
        night.review(alarm, "good", sha256="0" * 64),
        night.review(other, "defective", sha256="0" * 64),
    )
    before = (night.model / "model.json").read_bytes()
    with caplog.at_level("WARNING", "patchlake"):
        learn(night, reviews)
    assert "left out are 2 reviewed images whose file has changed since" in caplog.text
    assert (night.model / "model.json").read_bytes() == before


def test_content_is_compared_where_the_lake_keeps_no_checksum(night: Night, tmp_path: Path):
    alarm, lake = night.false_alarms[0], tmp_path / "lake"
    shutil.copytree(night.images, lake)
    path = lake / str(alarm["source_path"])
    table = pq.read_table(path, partitioning=None)
    content = table.column("image")[alarm["source_row"]].as_py()
    pq.write_table(table.drop_columns(["sha256"]), path)
    here = Night(lake, night.model, night.rows)
    sha256 = hashlib.sha256(content).hexdigest()
    wrong = write(tmp_path / "wrong", here.review(alarm, "good", sha256="0" * 64))
    learn(here, wrong)
    assert alarm["image_id"] not in present(night.model, str(alarm["group"]))
    learn(here, write(tmp_path / "right", here.review(alarm, "good", sha256=sha256)))
    assert alarm["image_id"] in present(night.model, str(alarm["group"]))


def test_an_image_id_that_several_rows_have_is_left_out_and_said(
    night: Night, tmp_path: Path, caplog
):
    lake, alarm = tmp_path / "lake", night.false_alarms[0]
    shutil.copytree(night.images, lake)
    path = lake / str(alarm["source_path"])
    table = pq.read_table(path, partitioning=None)
    ids = [str(alarm["image_id"])] * len(table)
    at = table.column_names.index("image_id")
    pq.write_table(table.set_column(at, "image_id", pa.array(ids)), path)
    csv_ = tmp_path / "x.csv"
    csv_.write_text(f"image_id,verdict\n{alarm['image_id']},good\n")
    before = (night.model / "model.json").read_bytes()
    with caplog.at_level("WARNING", "patchlake"):
        learn(Night(lake, night.model, night.rows), str(csv_))
    assert "left out are 1 reviewed image whose image_id several rows have" in caplog.text
    assert (night.model / "model.json").read_bytes() == before


def test_a_defective_image_that_only_an_ambiguous_id_tells_stays_and_is_said(
    first: Night, tmp_path: Path, caplog
):
    lake, model = tmp_path / "lake", tmp_path / "other"
    shutil.copytree(first.images, lake)
    for path in lake.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        at = table.column_names.index("image_id")
        pq.write_table(table.set_column(at, "image_id", pa.array(["same"] * len(table))), path)
    fit.run(str(lake), str(model), tiny(), LOCAL)
    (tmp_path / "x.csv").write_text("image_id,verdict\nsame,defective\n")
    before = (model / "model.json").read_bytes()
    with caplog.at_level("WARNING", "patchlake"):
        learn(Night(lake, model, first.rows), str(tmp_path / "x.csv"))
    assert "2 defective images stay in" in caplog.text
    assert (model / "model.json").read_bytes() == before


def test_what_left_the_model_does_not_come_back(night: Night, tmp_path: Path):
    reviews = tmp_path / "reviews"
    learn(night, write(reviews, night.review(night.row(BAD), "defective")))
    assert BAD not in present(night.model, "woven_cloth")
    later = datetime(2026, 1, 3, tzinfo=UTC)
    again = night.review(night.row(BAD), "good", reviewed_at=later, is_anomalous=True)
    learn(night, write(reviews, again))
    assert BAD not in present(night.model, "woven_cloth")
    manifest = read_manifest(Folder(str(night.model)))
    counts = learning.counts_of(Folder(str(night.model)), manifest, str(reviews))
    assert counts["woven_cloth"].withdrawn_before == 1
    assert counts["woven_cloth"].false_alarms_not_in_model == 0


def test_a_model_is_not_judged_by_the_false_alarms_that_it_has_learnt(night: Night, tmp_path: Path):
    reviews = write(tmp_path / "x", *(night.review(row, "good") for row in night.false_alarms))
    group = str(night.false_alarms[0]["group"])
    measured = {r["image_id"]: r["part_score"] for r in members(night.model, group)}
    learn(night, reviews)
    for row in members(night.model, group):
        expected = measured.get(row["image_id"])
        assert row["part_score"] == expected
        assert (row["score"] is None) == (row["image_id"] not in measured)


@pytest.mark.parametrize("stopped_in", [1, 2])
def test_it_goes_on_where_it_was_stopped(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: int
):
    alarm = night.false_alarms[0]
    reviews = write(
        tmp_path / "reviews",
        night.review(alarm, "good"),
        night.review(night.row(BAD), "defective"),
    )
    whole = Night(night.images, Path(shutil.copytree(night.model, tmp_path / "whole")), night.rows)
    expected = learn(whole, reviews)
    writes = 0
    write_manifest = lineage.models.write_manifest

    def stop(*arguments: object) -> None:
        nonlocal writes
        writes += 1
        if writes == stopped_in:
            raise KeyboardInterrupt
        write_manifest(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("patchlake.pipeline.model_store.models.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            learn(night, reviews)
    steps = read_manifest(Folder(str(night.model))).lineage
    assert [step.verb for step in steps] == ["fit", "withdraw"][:stopped_in]
    found = learn(night, reviews)
    assert found.groups == expected.groups
    assert [step.verb for step in found.lineage] == ["fit", "withdraw", "update"]


@pytest.mark.parametrize(
    "method", ["mahalanobis", *(soak(name) for name in UPDATABLE if name != "mahalanobis")]
)
def test_every_method_that_can_learns(method: str, first: Night, tmp_path: Path):
    settings, model = settings_of(method, **RATE), tmp_path / "model"
    fit.run(str(first.images), str(model), settings, LOCAL)
    here = Night(first.images, model, first.rows)
    alarm = here.row("brushed_plate/test/good/001.png")
    reviews = write(
        tmp_path / "reviews",
        here.review(alarm, "good", is_anomalous=None),
        here.review(here.row(BAD), "defective"),
    )
    learning.run(str(here.images), str(model), reviews, settings, LOCAL)
    assert alarm["image_id"] in present(model, "brushed_plate")
    assert BAD not in present(model, "woven_cloth")


def test_images_that_joined_from_two_lakes_leave_in_two_steps(first: Night, tmp_path: Path):
    """Where what an image gave to the model is computed again, from where the image is."""
    settings, model, lake = settings_of("padim"), tmp_path / "model", tmp_path / "lake"
    fit.run(str(first.images), str(model), settings, LOCAL)
    shutil.copytree(first.images, lake)
    here, there = (Night(images, model, first.rows) for images in (first.images, lake))
    alarm = here.row("woven_cloth/test/good/001.png")
    reviews = write(tmp_path / "good", there.review(alarm, "good", is_anomalous=None))
    learning.run(str(lake), str(model), reviews, settings, LOCAL)
    reviews = write(
        tmp_path / "bad",
        there.review(alarm, "defective"),
        here.review(here.row(BAD), "defective"),
    )
    found = learning.run(str(first.images), str(model), reviews, settings, LOCAL)
    assert [step.verb for step in found.lineage] == ["fit", "update", "withdraw", "withdraw"]
    assert not present(model, "woven_cloth") & {BAD, alarm["image_id"]}


def test_what_is_trained_on_all_images_refuses(first: Night, tmp_path: Path):
    settings, model = settings_of("cfa"), tmp_path / "model"
    fit.run(str(first.images), str(model), settings, LOCAL)
    reviews = write(tmp_path / "x", first.review(first.row(BAD), "defective"))
    with pytest.raises(ConfigError, match="method 'cfa' is trained on all images together"):
        learning.run(str(first.images), str(model), reviews, settings, LOCAL)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_local_learn_the_same(night: Night, tmp_path: Path, one_actor: None):
    reviews = write(
        tmp_path / "reviews",
        night.review(night.false_alarms[0], "good"),
        night.review(night.row(BAD), "defective"),
    )
    other = Night(night.images, Path(shutil.copytree(night.model, tmp_path / "ray")), night.rows)
    assert learn(other, reviews, Execution("ray", None)).groups == learn(night, reviews).groups


@pytest.mark.slow
def test_reviews_in_s3_are_learnt_by_a_model_in_s3(night: Night, tmp_path: Path, store: Store):
    settings = store.settings()
    storage = settings.storage
    for path in sorted(night.images.rglob("*.parquet")):
        store.put(f"images/{path.relative_to(night.images)}", path.read_bytes())
    fit.run(store.uri("images"), store.uri("model"), settings, LOCAL)
    alarm = night.false_alarms[0]
    root = Folder.at(store.uri("images"), storage).root
    table = pa.Table.from_pylist([night.review(alarm, "good", root=root)], schema=REVIEWS)
    append(Folder.at(store.uri("reviews"), storage), table)
    names = (store.uri("images"), store.uri("model"), store.uri("reviews"))
    manifest = learning.run(*names, settings, LOCAL)
    assert [step.verb for step in manifest.lineage] == ["fit", "update"]
    assert learning.run(*names, settings, LOCAL) == manifest


def test_reviews_without_an_update_are_refused(night: Night, tmp_path: Path, patchlake):
    reviews = write(tmp_path / "x", night.review(night.row(BAD), "defective"))
    alone = patchlake("fit", night.images, night.model, "--reviews", reviews, *FLAGS)
    assert (alone.code, "name --update as well" in alone.err) == (2, True)
    none = patchlake(
        "fit", night.images, night.model, "--update", "--reviews", tmp_path / "none", *FLAGS
    )
    assert (none.code, "there are no reviews at" in none.err) == (2, True)


def test_an_update_brings_nothing_but_what_reviews_name(night: Night, tmp_path: Path):
    """Images that the lake calls good and the model does not know wait for an update without."""
    model = tmp_path / "half"
    where = "g = 'woven_cloth'"
    fit.run(str(night.images), str(model), tiny(), LOCAL, where=where)
    row = night.row("woven_cloth/test/good/001.png")
    reviews = write(tmp_path / "x", night.review(row, "good", is_anomalous=True))
    learning.run(str(night.images), str(model), reviews, tiny(), LOCAL)
    steps = read_manifest(Folder(str(model))).lineage
    assert steps[-1].groups["woven_cloth"].added == 1
    plain = update.run(str(night.images), str(model), tiny(), LOCAL)
    assert len(plain.lineage) == len(steps)


def test_what_a_person_decided_is_not_told_as_changed(night: Night, tmp_path: Path):
    """The lake still says that it is a test image."""
    alarm, lake = night.false_alarms[0], tmp_path / "lake"
    shutil.copytree(night.images, lake)
    here = Night(lake, night.model, night.rows)
    learn(here, write(tmp_path / "reviews", here.review(alarm, "good")))
    assert alarm["image_id"] in present(night.model, str(alarm["group"]))
    for path in lake.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table, path, row_group_size=3)
    target = Folder.at(str(night.model))
    assert say_changed(target, read_manifest(target)) == {}


def test_evaluate_goes_by_reviews(first: Night, tmp_path: Path, patchlake):
    scores = first.model.parent / "scores"
    compared = [row for row in first.rows if is_test(row) and row["group"] == "woven_cloth"]
    good = [row for row in compared if is_good(row)]
    defects = [row for row in compared if not is_good(row)]
    reviews = write(
        tmp_path / "reviews",
        first.review(good[0], "defective"),
        first.review(defects[0], "good"),
        first.review(defects[1], "unsure"),
        first.review(defects[2], "good"),
        first.review(defects[2], "defective", reviewer="bob"),
        # It was trained on, and counts no more than without a review.
        first.review(first.row(BAD), "defective"),
    )
    shown = patchlake("evaluate", first.images, scores, "--reviews", reviews, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)["groups"]["woven_cloth"]
    plain = json.loads(patchlake("evaluate", first.images, scores, "--json").out)
    plain = plain["groups"]["woven_cloth"]

    truth = {id(row): not is_good(row) for row in compared if row is not defects[2]}
    truth[id(good[0])], truth[id(defects[0])] = True, False
    rows = [row for row in compared if id(row) in truth]
    values = np.array([row["image_score"] for row in rows])
    labels = np.array([truth[id(row)] for row in rows])
    flagged = np.array([row["is_anomalous"] for row in rows])
    assert found["image_auroc"] == auroc(values, labels)
    assert found["image_auroc"] != plain["image_auroc"]
    assert (found["images"], found["anomalous"]) == (len(rows), int(labels.sum()))
    assert found["recall"] == flagged[labels].mean()
    assert found["false_alarm_rate"] == flagged[~labels].mean()
    assert (found["reviewed"], plain["reviewed"]) == (2, 0)
    assert found["unlabelled"] == plain["unlabelled"] + 1
    assert found["trained_on"] == plain["trained_on"] == 12
    # Nobody has a mask of the one that only its review calls defective.
    assert found["masks_missing"] == plain["masks_missing"] + 1


def test_an_image_that_was_learnt_is_not_evaluated_with_the_model_that_knows_it(
    night: Night, tmp_path: Path, patchlake
):
    alarm = night.false_alarms[0]
    reviews = write(tmp_path / "reviews", night.review(alarm, "good"))

    def evaluated(name: str) -> Mapping[str, object]:
        scores = tmp_path / name
        scored(night.images, night.model, scores, tiny())
        shown = patchlake("evaluate", night.images, scores, "--reviews", reviews, "--json")
        assert shown.code == 0, shown.err
        found: Mapping[str, object] = json.loads(shown.out)["groups"][alarm["group"]]
        return found

    before = evaluated("before")
    learn(night, reviews)
    after = evaluated("after")
    assert (before["images"], after["images"]) == (10, 9)
    assert (before["reviewed"], after["reviewed"]) == (1, 0)
    assert (before["trained_on"], after["trained_on"]) == (12, 13)


def test_status_of_a_score_table_has_nothing_to_learn(first: Night, tmp_path: Path, patchlake):
    reviews = write(tmp_path / "x", first.review(first.row(BAD), "defective"))
    shown = patchlake("status", first.model.parent / "scores", "--reviews", reviews)
    assert (shown.code, "is no model" in shown.err) == (2, True)
