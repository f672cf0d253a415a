"""Verdicts in a score table: what they promise, where they mark, and who keeps them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchlake as library
from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.groups.files import load_accounts
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import read_manifest, write_files
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY
from tests.jobs.conftest import GROUP, TRAINING_IMAGES, WHERE, FittedBy
from tests.small import EVERY, SMALL

Row = dict[str, object]
RATE = 0.1
# The method is the model's.
SCORED = {name: value for name, value in TINY.items() if name not in ("method", "score")}


def table(scores: Path) -> list[Row]:
    parts = sorted(scores.glob("version=*/**/*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def training(model: Path) -> list[Row]:
    record = read_manifest(Folder(str(model))).groups[GROUP]
    return load_accounts(Folder(str(model)), record).images.to_pylist()


def judge(images: Path, model: Path, scores: Path, rate: float = RATE, **more: object) -> list[Row]:
    flags = SCORED | {"verdict": {"false_alarm_rate": rate}} | more
    score.run(str(images), str(model), str(scores), load_settings(flags=flags), LOCAL, where=WHERE)
    return table(scores)


def p_value(rows: list[Row], new: float) -> float:
    """By definition, part by part."""
    shares: dict[object, list[bool]] = {}
    for row in rows:
        if row["part_score"] is not None:
            shares.setdefault(row["part"], []).append(row["part_score"] >= new)
    return (1 + sum(np.mean(one) for one in shares.values())) / (len(shares) + 1)


@pytest.mark.parametrize("method", EVERY)
def test_every_method_says_whether_how_sure_and_where(
    method: str, images: Path, fitted_by: FittedBy, tmp_path: Path
):
    model = fitted_by(method)
    if method == "cfa":
        # Half of the images are not trained on; else none is left to go by.
        model, options = tmp_path / "m", {"name": "cfa", "held_out_fraction": 0.5} | SMALL["cfa"]
        fit.run(str(images), str(model), load_settings(flags=TINY | {"method": options}), LOCAL)
    rate = 0.2 if method == "cfa" else RATE
    rows, known = judge(images, model, tmp_path / "s", rate), training(model)
    assert {row["status"] for row in rows} == {"ok"}
    anomalous = 0
    for row in rows:
        assert row["p_value"] == pytest.approx(p_value(known, row["image_score"]), rel=1e-6)
        assert row["is_anomalous"] == (row["image_score"] > row["threshold"])
        assert row["is_anomalous"] == (row["p_value"] <= rate)
        has_map = row["anomaly_map"] is not None
        assert (row["regions"] is not None) == (row["pixel_threshold"] is not None) == has_map
        assert (row["heatmap_path"] is not None) == (has_map and row["is_anomalous"])
        if has_map:
            assert bool(row["regions"]) == row["is_anomalous"]
            for region in row["regions"]:
                assert 0 <= region["x"] <= region["centre_x"] <= region["x"] + region["width"]
                assert region["x"] + region["width"] <= row["width"]
                assert region["y"] + region["height"] <= row["height"]
                assert 1 <= region["area"] <= region["width"] * region["height"]
        anomalous += row["is_anomalous"]
    assert anomalous < len(rows)
    # DN2 finds none of the tiny ones.
    assert anomalous or method == "dn2"


def test_an_image_in_memory_is_judged_as_its_row(images: Path, fitted_by: FittedBy, tmp_path: Path):
    model = fitted_by("patchcore")
    rows = {row["image_id"]: row for row in judge(images, model, tmp_path, 0.2)}
    lake = pq.read_table(images, filters=[("group", "=", GROUP)], columns=["image_id", "image"])
    some = lake.slice(0, 40).to_pylist()
    detector = library.load(
        str(model), settings=load_settings(flags={"verdict": {"false_alarm_rate": 0.2}})
    )
    for found, image in zip(detector.score([one["image"] for one in some]), some, strict=True):
        row = rows[image["image_id"]]
        assert (found.threshold, found.is_anomalous) == (row["threshold"], row["is_anomalous"])
        assert np.float32(found.p_value) == np.float32(row["p_value"])
        boxes = [(one.x, one.y, one.width, one.height, one.area) for one in found.regions]
        names = ("x", "y", "width", "height", "area")
        assert boxes == [tuple(region[name] for name in names) for region in row["regions"]]


def test_what_can_be_promised_is_said(
    images: Path, fitted_by: FittedBy, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = fitted_by("patchcore")
    with caplog.at_level("WARNING"):
        rows = judge(images, model, tmp_path, 0.01)
    assert "takes good images of 99 parts, and those of 12 were measured: 0.0769" in caplog.text
    highest = max(row["part_score"] for row in training(model))
    assert {row["threshold"] for row in rows} == {highest}
    assert {row["is_anomalous"] for row in rows} == {True, False}


def test_the_rate_of_the_fit_is_that_of_the_score_unless_another_is_named(
    images: Path, tmp_path: Path
):
    asked = load_settings(flags=TINY | {"verdict": {"false_alarm_rate": 0.3}})
    fit.run(str(images), str(tmp_path / "m"), asked, LOCAL, where=WHERE)
    plain, other = (
        load_settings(flags=TINY),
        load_settings(flags=TINY | {"verdict": {"false_alarm_rate": 0.1}}),
    )
    found = {}
    for name, one in (("as fitted", plain), ("named", other)):
        score.run(str(images), str(tmp_path / "m"), str(tmp_path / name), one, LOCAL, where=WHERE)
        found[name] = {row["threshold"] for row in table(tmp_path / name)}
    assert found["as fitted"] < found["named"] or found["as fitted"] != found["named"]
    [fitted], [named] = found["as fitted"], found["named"]
    assert fitted < named


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_images_promise_little_and_break_nothing(
    count: int, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    lake = pq.read_table(images, filters=[("group", "=", GROUP)]).filter(
        pa.compute.equal(
            pq.read_table(images, filters=[("group", "=", GROUP)]).column("split"), "train"
        )
    )
    (tmp_path / "few").mkdir()
    pq.write_table(lake.slice(0, count), tmp_path / "few" / "a.parquet")
    settings = load_settings(flags=TINY)
    fit.run(str(tmp_path / "few"), str(tmp_path / "m"), settings, LOCAL)
    with caplog.at_level("WARNING"):
        rows = judge(images, tmp_path / "m", tmp_path / "s")
    if count == 1:
        assert "has no verdicts" in caplog.text
        assert {(row["p_value"], row["is_anomalous"], row["threshold"]) for row in rows} == {
            (None, None, None)
        }
        # Nobody knows which are anomalous: all are drawn.
        assert all(row["heatmap_path"] for row in rows)
    else:
        assert f"{1 / (count + 1):.3g} is promised instead" in caplog.text
        assert min(row["p_value"] for row in rows) == pytest.approx(1 / (count + 1))


def test_shots_of_a_part_are_left_out_together_and_named_in_the_scores(
    images: Path, tmp_path: Path
):
    lake = pq.read_table(images, filters=[("group", "=", GROUP)])
    names = [f"p{number // 3}" for number in range(len(lake))]
    if "part_id" in lake.column_names:
        lake = lake.drop_columns(["part_id"])
    (tmp_path / "lake").mkdir()
    pq.write_table(lake.append_column("part_id", pa.array(names)), tmp_path / "lake" / "a.parquet")
    ids = dict(zip(lake.column("image_id").to_pylist(), names, strict=True))
    for method in ("patchcore", "padim"):
        options = load_settings(flags=TINY | {"method": {"name": method} | SMALL[method]})
        model = tmp_path / f"m-{method}"
        fit.run(str(tmp_path / "lake"), str(model), options, LOCAL)
        facts = read_manifest(Folder(str(model))).groups[GROUP].facts
        known = training(model)
        parts = {ids[row["image_id"]] for row in known}
        assert (facts["parts_told_by"], facts["parts"]) == ("part_id", len(parts))
        assert all(row["part_id"] == ids[row["image_id"]] for row in known)
        # Without its siblings, too, an image is farther from what is left.
        assert sum(row["part_score"] for row in known) > sum(row["score"] for row in known)
        rows = judge(tmp_path / "lake", model, tmp_path / f"s-{method}", 0.5)
        assert all(row["part_id"] == ids[row["image_id"]] for row in rows)
        for row in rows:
            assert row["p_value"] == pytest.approx(p_value(known, row["image_score"]), rel=1e-6)


def test_a_column_of_that_name_that_is_something_else_stops_nobody(images: Path, tmp_path: Path):
    lake = pq.read_table(images, filters=[("group", "=", GROUP)])
    if "part_id" in lake.column_names:
        lake = lake.drop_columns(["part_id"])
    lists = pa.array([[1, 2]] * len(lake))
    (tmp_path / "lake").mkdir()
    pq.write_table(lake.append_column("part_id", lists), tmp_path / "lake" / "a.parquet")
    fit.run(str(tmp_path / "lake"), str(tmp_path / "m"), load_settings(flags=TINY), LOCAL)
    facts = read_manifest(Folder(str(tmp_path / "m"))).groups[GROUP].facts
    assert (facts["parts_told_by"], facts["judged_parts"]) == ("look-alikes", TRAINING_IMAGES)


def test_an_ensemble_judges_by_the_images_that_its_members_share(
    images: Path, fitted_by: FittedBy, tmp_path: Path
):
    models = [str(fitted_by("patchcore")), str(fitted_by("padim"))]
    flags = SCORED | {"verdict": {"false_alarm_rate": RATE}}
    score.run(str(images), models, str(tmp_path), load_settings(flags=flags), LOCAL, where=WHERE)
    rows = table(tmp_path)
    assert {row["p_value"] <= RATE for row in rows} == {True, False}
    for row in rows:
        assert row["is_anomalous"] == (row["p_value"] <= RATE) == bool(row["regions"])
    assert min(row["p_value"] for row in rows) == pytest.approx(1 / (TRAINING_IMAGES + 1))


def test_models_of_before_are_scored_without_verdicts(
    images: Path, fitted_by: FittedBy, tmp_path: Path
):
    """As a model looked that was fitted by the last version: no verdicts, no thumbnails."""
    model = tmp_path / "m"
    shutil.copytree(fitted_by("patchcore"), model)
    manifest = read_manifest(Folder(str(model)))
    record = manifest.groups[GROUP]
    [old] = [file for file in record.files if file.role == "calibration.json"]
    before = json.loads((model / old.name).read_text())
    del before["judged"]
    [new] = write_files(
        Folder(str(model)), GROUP, {"calibration.json": json.dumps(before).encode()}
    )
    files = [new if file.role == old.role else file for file in record.files]
    content = json.loads((model / "model.json").read_text())
    content["groups"][GROUP]["files"] = [one.model_dump() for one in files]
    content["groups"][GROUP]["digest"] = Identity.of(manifest).group_digest(files)
    content["settings"].pop("verdict")
    (model / "model.json").write_text(json.dumps(content))
    rows = judge(images, model, tmp_path / "s")
    assert {row["is_anomalous"] for row in rows} == {None}
    whole = {row["image_id"]: row for row in judge(images, fitted_by("patchcore"), tmp_path / "t")}
    assert all(row["image_score"] == whole[row["image_id"]]["image_score"] for row in rows)
