"""Verdicts and pixels at the threshold that a score table carries, on a tiny lake."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate, score
from patchlake.pipeline.evaluation.overlap import ImageOverlap
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.tables import SCORES
from tests.conftest import LOCAL, TINY, read_scores

PRODUCTS = ["brushed_plate", "woven_cloth"]
FRAME = (256, 256)


@pytest.fixture(scope="module")
def plain(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return scores without pictures; nobody writes there."""
    root = tmp_path_factory.mktemp("plain")
    settings = load_settings(flags=TINY | {"score": TINY["score"] | {"heatmaps": "none"}})
    score.run(str(images), str(model), str(root), settings, LOCAL)
    return root


def rewritten(plain: Path, to: Path, change) -> Path:
    """Return a copy of a score table, each part of which is what `change` makes of its rows."""
    shutil.copytree(plain, to)
    for file in sorted(to.glob("version=*/**/*.parquet")):
        rows = change(pq.ParquetFile(file).read().to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), file)
    return to


def frame_of(row):
    grid = np.array(row["anomaly_map"], np.float32).reshape(row["map_height"], row["map_width"])
    return Geometry((64, 64), None).to_frame(grid, (row["width"], row["height"]), FRAME)


def thresholds_of(plain: Path):
    """Return an image's and a pixel's threshold of each group: the second largest of good ones."""
    rows = [r for r in read_scores(plain).to_pylist() if "/test/good/" in r["image_id"]]
    found = {}
    for name in PRODUCTS:
        good = [r for r in rows if r["group"] == name]
        peaks = sorted(float(frame_of(r).max()) for r in good)
        found[name] = sorted(r["image_score"] for r in good)[-2], peaks[-2]
    return found


def judged(rows, thresholds, parts=True):
    """Give rows verdicts, and every two neighbours of a file one part."""
    for row in rows:
        threshold, pixel_threshold = thresholds[row["group"]]
        row["threshold"], row["pixel_threshold"] = threshold, pixel_threshold
        row["is_anomalous"] = row["image_score"] > threshold
        row["part_id"] = f"part {row['source_row'] // 2}" if parts else None
    return rows


@pytest.fixture(scope="module")
def with_verdicts(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = thresholds_of(plain)
    to = tmp_path_factory.mktemp("judged") / "scores"
    return rewritten(plain, to, lambda rows: judged(rows, thresholds))


def compared(scores: Path, name: str):
    rows = [r for r in read_scores(scores).to_pylist() if r["image_id"].startswith(f"{name}/test/")]
    return rows, np.array(["/good/" not in r["image_id"] for r in rows])


def masks_of(images: Path, name: str):
    (file,) = images.glob(f"g={name}/*.parquet")
    table = pq.ParquetFile(file).read(columns=["image_id", "mask"]).to_pylist()
    # The pictures have the size of the metric frame, so that a mask is what it is.
    return {
        row["image_id"]: np.asarray(Image.open(io.BytesIO(row["mask"])).convert("L")) > 0
        if row["mask"]
        else np.zeros(FRAME, bool)
        for row in table
    }


def test_verdicts_are_counted_against_the_labels(images: Path, with_verdicts: Path):
    found = evaluate.run(str(images), str(with_verdicts))
    for name in PRODUCTS:
        rows, is_bad = compared(with_verdicts, name)
        flagged = np.array([r["is_anomalous"] for r in rows])
        values = found[name]
        counts = [(flagged & is_bad), (flagged & ~is_bad), (~flagged & is_bad)]
        tp, fp, fn = (int(each.sum()) for each in counts)
        assert fp == 1
        assert [values["true_positives"], values["false_positives"]] == [tp, fp]
        assert [values["false_negatives"], values["true_negatives"]] == [
            fn,
            len(rows) - tp - fp - fn,
        ]
        assert values["recall"] == pytest.approx(tp / 6)
        assert values["false_alarm_rate"] == pytest.approx(1 / 4)
        assert values["precision"] == pytest.approx(tp / (tp + 1))
        assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert values["parts"] == len({r["part_id"] for r in rows}) == 5
        assert values["no_verdict"] == 0
        low, high = values["false_alarm_rate_interval"]
        assert low <= 1 / 4 <= high


def test_pixels_are_those_of_the_thresholded_map_of_anomalous_images(
    images: Path, with_verdicts: Path
):
    found = evaluate.run(str(images), str(with_verdicts))
    for name in PRODUCTS:
        masks, counts = masks_of(images, name), np.zeros(3, int)
        for row in compared(with_verdicts, name)[0]:
            mask = masks[row["image_id"]]
            predicted = frame_of(row) > np.float32(row["pixel_threshold"])
            if not row["is_anomalous"]:
                predicted[:] = False
            counts += [
                (predicted & mask).sum(),
                (predicted & ~mask).sum(),
                (~predicted & mask).sum(),
            ]
        values = found[name]
        names = ("true_positives", "false_positives", "false_negatives")
        assert [values[f"pixel_{each}"] for each in names] == counts.tolist()
        tp, fp, fn = counts.tolist()
        assert tp > 0
        assert values["seg_f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert values["defect_regions"] >= 6
        hit = values["defect_regions_hit"] / values["defect_regions"]
        assert values["region_hit_rate"] == pytest.approx(hit)
        overlap = ImageOverlap()
        for row in compared(with_verdicts, name)[0]:
            overlap.add(frame_of(row), masks[row["image_id"]])
        assert values["aupimo"] == overlap.aupimo()
        assert 0 < values["aupro_5"] <= values["aupro"]


def test_without_verdicts_what_needs_none_is_the_same_and_the_rest_is_none(
    images: Path, plain: Path, with_verdicts: Path, tmp_path: Path, patchlake
):
    gone = {"is_anomalous": None, "threshold": None, "pixel_threshold": None, "part_id": None}
    bare = rewritten(plain, tmp_path / "bare", lambda rows: [row | gone for row in rows])
    old = tmp_path / "old"
    shutil.copytree(bare, old)
    for file in old.glob("version=*/**/*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(list(gone)), file)
    found = evaluate.run(str(images), str(bare))
    assert evaluate.run(str(images), str(old)) == found
    judged_ = evaluate.run(str(images), str(with_verdicts))
    for name in PRODUCTS:
        for rate in ("recall", "false_alarm_rate", "precision", "f1"):
            assert found[name][rate] is None
            assert found[name][f"{rate}_interval"] is None
        assert (found[name]["seg_f1"], found[name]["region_hit_rate"]) == (None, None)
        assert (found[name]["no_verdict"], found[name]["parts"]) == (10, 0)
        for key in ("image_auroc", "pixel_auroc", "aupro", "aupro_5", "aupimo", "images"):
            assert found[name][key] == judged_[name][key]
        rows, is_bad = compared(bare, name)
        scores = np.array([r["image_score"] for r in rows])
        assert found[name]["image_auroc"] == auroc(scores, is_bad)
    assert "TP / FP" not in patchlake("evaluate", images, bare).out


def test_images_without_a_verdict_are_said_and_left_out_of_the_rates(
    images: Path, with_verdicts: Path, tmp_path: Path, patchlake
):
    def without_some(rows):
        for row in rows:
            if "/test/good/" in row["image_id"]:
                row.update(is_anomalous=None, threshold=None, pixel_threshold=None)
        return rows

    some = rewritten(with_verdicts, tmp_path / "some", without_some)
    done = patchlake("evaluate", images, some, "--json")
    assert "4 images compared have no verdict" in done.err
    values = json.loads(done.out)["groups"]["woven_cloth"]
    assert (values["no_verdict"], values["false_alarm_rate"]) == (4, None)
    assert values["precision"] == 1.0
    assert values["images"] == 10


def test_the_cut_into_fragments_changes_nothing(
    images: Path, model: Path, plain: Path, with_verdicts: Path, tmp_path: Path
):
    cut = TINY | {"fragment_images": 3, "score": TINY["score"] | {"heatmaps": "none"}}
    score.run(str(images), str(model), str(tmp_path / "cut"), load_settings(flags=cut), LOCAL)
    thresholds = thresholds_of(plain)
    other = rewritten(tmp_path / "cut", tmp_path / "out", lambda rows: judged(rows, thresholds))
    assert evaluate.run(str(images), str(other)) == evaluate.run(str(images), str(with_verdicts))


def test_both_tables_are_printed_in_100_columns_and_json_has_everything(
    images: Path, with_verdicts: Path, patchlake
):
    shown = patchlake("evaluate", images, with_verdicts).out.splitlines()
    tables = [line for line in shown if line and not line.startswith("/")]
    assert max(map(len, tables)) <= 100
    text = "\n".join(tables)
    found = evaluate.run(str(images), str(with_verdicts))
    for values in found.values():
        for rate in ("recall", "false_alarm_rate", "precision", "f1"):
            low, high = values[f"{rate}_interval"]
            assert f"[{low:.2f}, {high:.2f}]" in text
        assert f"{values['true_positives']} / {values['false_positives']} / " in text
        assert f"{values['aupimo']:.3f}" in text
    said = json.loads(patchlake("evaluate", images, with_verdicts, "--json").out)
    assert said["groups"] == json.loads(json.dumps(found))
    assert list(found["woven_cloth"]) == list(evaluate.Metrics.__annotations__)
    rates = [values["recall"] for values in found.values()]
    assert said["mean"]["recall"] == pytest.approx(np.mean(rates))
    assert said["mean"]["true_negatives"] == sum(v["true_negatives"] for v in found.values())
    assert not any("interval" in key for key in said["mean"])
    assert {key for key in found["woven_cloth"] if "interval" not in key} == set(said["mean"])
