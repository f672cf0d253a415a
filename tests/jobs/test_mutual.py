"""A night's images are compared with one another: one command, no label, no fit beforehand."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate, fit, mutual, score, status, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.withdraw import Withdrawal
from patchlake.pipeline.errors import ConfigError, FragmentsFailed
from patchlake.pipeline.lake.changed import GONE
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, output_files, read_scores

NIGHTS = ("2026-11-21", "2026-11-22")
FLAGS = [one for one in TINY_FLAGS if one != "method.coreset_fraction=0.1"]
FLAGS.pop(FLAGS.index("fragment_images=10") - 2)


def settings_of(**changed):
    return load_settings(flags={k: v for k, v in TINY.items() if k != "method"} | changed)


def compare(images: Path, root: Path, execution=LOCAL, /, where=None, **changed):
    asked = (str(images), str(root / "model"), str(root / "scores"))
    return mutual.run(*asked, settings_of(**changed), execution, where=where)


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny lake, compared; nobody writes there."""
    root = tmp_path_factory.mktemp("mutual")
    compare(images, root)
    return root


@pytest.fixture(scope="module")
def nights(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights of 11 images, and of another product two and three."""
    root = tmp_path_factory.mktemp("nights")
    cloth, plate = (
        pq.ParquetFile(next(images.glob(f"g={name}/*.parquet"))).read()
        for name in ("woven_cloth", "brushed_plate")
    )
    for number, night in enumerate(NIGHTS):
        (root / f"dt={night}").mkdir()
        some = cloth.take(pa.array(range(number, 22, 2)))
        few = plate.slice(3 * number, 2 + number)
        pq.write_table(some, root / f"dt={night}" / "cloth.parquet")
        pq.write_table(few, root / f"dt={night}" / "plate.parquet")
    return root


def test_every_row_has_a_score_a_map_and_a_rank(done: Path):
    rows = by_place(done / "scores")
    assert len(rows) == 44
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["image_score"] == max(row["anomaly_map"]) > 0
        assert (done / "scores" / row["heatmap_path"]).is_file()
        assert 0 < row["p_value"] <= 1
    manifest = read_manifest(Folder(str(done / "model")))
    assert (manifest.method, manifest.settings.fit_on) == ("musc", "all")
    # Of each product all images, whatever their label and split.
    assert [group.images for group in manifest.groups.values()] == [22, 22]
    assert [group.facts["references"] for group in manifest.groups.values()] == [22, 22]


@pytest.mark.slow
def test_an_image_is_scored_as_by_the_others_alone(done: Path, images: Path, tmp_path: Path):
    """It is taken out of the model, which then has never seen it: the same score, to the bit."""
    shutil.copytree(done / "model", tmp_path / "model")
    row = next(r for r in by_place(done / "scores").values() if "hole" in r["image_id"])
    leaving, settings = Withdrawal((row["image_id"],)), settings_of()
    withdraw.run(str(tmp_path / "model"), leaving, settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "s"), settings, LOCAL)
    place = row["source_path"], row["source_row"]
    again = by_place(tmp_path / "s")[place]
    assert again["anomaly_map"] == row["anomaly_map"]
    # The others have lost something to be compared with.
    assert again["model_id"] != row["model_id"]


def test_calibration_measures_what_the_score_table_says(done: Path):
    """Each image of the model without its part: the very scores that they get."""
    manifest = read_manifest(Folder(str(done / "model")))
    for name, group in manifest.groups.items():
        (file,) = (f for f in group.files if f.role == "images.parquet")
        kept = pq.read_table(done / "model" / file.name).to_pylist()
        told = {r["image_id"]: r["image_score"] for r in by_place(done / "scores").values()}
        measured = {r["image_id"]: r["part_score"] for r in kept}
        assert measured == {one: told[one] for one in measured}, name


@pytest.mark.slow
def test_the_same_command_again_does_nothing(done: Path, images: Path, tmp_path: Path):
    shutil.copytree(done, tmp_path / "again")
    before = output_files(tmp_path / "again" / "scores")
    summary = compare(images, tmp_path / "again")
    assert summary.already_done == summary.fragments
    assert output_files(tmp_path / "again" / "scores") == before
    assert len(read_manifest(Folder(str(tmp_path / "again" / "model"))).lineage) == 1


@pytest.mark.slow
def test_neither_fragments_nor_the_cut_of_files_change_a_score(
    done: Path, images: Path, tmp_path: Path
):
    """Also where not all images are references: which ones are hangs on their bytes alone."""
    method = {"references": 9}
    compare(images, tmp_path / "one", method=method)
    lake = tmp_path / "lake"
    lake.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.parquet"))):
        table = pq.ParquetFile(file).read()
        turned = table.take(pa.array(np.roll(np.arange(len(table))[::-1], 5)))
        pq.write_table(turned, lake / f"{number}.parquet")
    compare(lake, tmp_path / "other", method=method, fragment_images=4)
    one, other = (
        {r["image_id"]: (r["image_score"], r["anomaly_map"]) for r in rows}
        for rows in (read_scores(tmp_path / n / "scores").to_pylist() for n in ("one", "other"))
    )
    assert one == other
    assert one != {
        r["image_id"]: (r["image_score"], r["anomaly_map"])
        for r in read_scores(done / "scores").to_pylist()
    }


@pytest.mark.slow
def test_shots_of_one_part_are_not_compared(images: Path, tmp_path: Path):
    """The same night, whose images are told to be of parts in pairs: a defect shows in both."""
    found = {}
    for name, of_part in (("alone", 1), ("pairs", 2)):
        lake = tmp_path / name
        lake.mkdir()
        for file in sorted(images.glob("g=woven_cloth/*.parquet")):
            table = pq.ParquetFile(file).read()
            # Each picture twice, as two encodings of it: with a byte behind the end.
            twice = pa.concat_tables([table, table])
            pictures = [p + b"\0" * (n >= 22) for n, p in enumerate(twice["image"].to_pylist())]
            parts = [f"part {n % 22 if of_part == 2 else n}" for n in range(44)]
            ids = [f"{n}" for n in range(44)]
            for column, values in (("image", pictures), ("part_id", parts), ("image_id", ids)):
                at = twice.column_names.index(column)
                twice = twice.set_column(at, column, pa.array(values))
            pq.write_table(twice.drop_columns(["sha256"]), lake / "a.parquet")
        compare(lake, tmp_path / name / "_out", columns={"part_id": "part_id"})
        rows = read_scores(tmp_path / name / "_out" / "scores").to_pylist()
        found[name] = {row["image_id"]: row["image_score"] for row in rows}
    # With its copy for company a defect has one neighbour at no distance, of the 12 that count.
    assert all(found["alone"][one] < found["pairs"][one] for one in found["pairs"])


@pytest.mark.slow
def test_a_group_with_too_few_images_has_rows_that_say_so(nights: Path, tmp_path: Path, caplog):
    with pytest.raises(FragmentsFailed, match=r"2 of 13 .*no_model") as failed:
        compare(nights, tmp_path, where=f"dt = '{NIGHTS[0]}'")
    assert failed.value.result.statuses == {"ok": 11, "no_model": 2}
    told = r"'brushed_plate': 2 different images of 2 are too few .* takes 5: add images"
    rows = read_scores(tmp_path / "scores").to_pylist()
    errors = [row["error"] for row in rows if row["status"] == "no_model"]
    assert len(errors) == 2
    for error in errors:
        assert re.search(told, error)
    assert "brushed_plate: 2 different images of 2 are too few" in caplog.text
    assert "nothing is promised of false alarms" in caplog.text
    assert "is promised instead" not in caplog.text


def test_where_no_group_has_enough_images_nothing_is_scored(
    nights: Path, tmp_path: Path, patchlake
):
    where = f"\"group\" = 'brushed_plate' AND dt = '{NIGHTS[0]}'"
    said = "brushed_plate: 2 different images of 2"
    with pytest.raises(FragmentsFailed, match=said) as failed:
        compare(nights, tmp_path, where=where)
    assert failed.value.result is None
    model, scores = tmp_path / "model", tmp_path / "scores"
    done = patchlake("mutual", nights, model, scores, "--where", where, *FLAGS)
    assert done.code == 3
    assert said in done.err
    assert not scores.exists()


@pytest.mark.slow
def test_a_second_night_joins_or_is_scored_by_the_first_alone(nights: Path, tmp_path: Path):
    first, second = (f"dt = '{night}' AND \"group\" = 'woven_cloth'" for night in NIGHTS)
    compare(nights, tmp_path, where=first)
    shutil.copytree(tmp_path / "model", tmp_path / "before")
    asked = (str(nights), str(tmp_path / "before"), str(tmp_path / "by_first"))
    score.run(*asked, settings_of(), LOCAL, where=second)
    compare(nights, tmp_path, where=second)
    manifest = read_manifest(Folder(str(tmp_path / "model")))
    assert [step.verb for step in manifest.lineage] == ["fit", "update"]
    assert manifest.groups["woven_cloth"].facts["references"] == 22
    # As if both nights had been one.
    both = tmp_path / "both"
    compare(nights, both, where="\"group\" = 'woven_cloth'")
    of_night = {p: r for p, r in by_place(both / "scores").items() if NIGHTS[1] in p[0]}
    version = manifest.groups["woven_cloth"].digest
    found = {p: r for p, r in by_place(tmp_path / "scores").items() if r["model_id"] == version}
    alone = by_place(tmp_path / "by_first")
    assert found.keys() == of_night.keys() == alone.keys()
    for place, row in found.items():
        assert row["anomaly_map"] == of_night[place]["anomaly_map"]
        assert row["anomaly_map"] != alone[place]["anomaly_map"]


@pytest.mark.slow
def test_labels_are_read_by_evaluate_alone(done: Path, images: Path):
    """Images of the model are compared: none was scored by what the model has of it."""
    for metrics in evaluate.run(str(images), str(done / "scores")).values():
        assert metrics["trained_on"] == 0
        # 4 good and 6 defective of the test split.
        assert (metrics["images"], metrics["anomalous"]) == (10, 6)
        assert metrics["pixel_auroc"] is not None
    (run,) = status.read(str(done / "model"))
    assert not run.changed


def test_a_model_of_another_kind_is_refused(images: Path, model: Path, tmp_path: Path):
    settings = settings_of()
    with pytest.raises(ConfigError, match=r"holds a model of method 'patchcore'.*another MODEL"):
        mutual.run(str(images), str(model), str(tmp_path / "s"), settings, LOCAL)
    of_good = settings_of(method={"name": "musc"})
    fit.run(str(images), str(tmp_path / "good"), of_good, LOCAL)
    with pytest.raises(ConfigError, match=r"fitted on good images alone.*by `patchlake score`"):
        mutual.run(str(images), str(tmp_path / "good"), str(tmp_path / "s"), settings, LOCAL)
    other = settings_of(method={"name": "padim"})
    with pytest.raises(ConfigError, match=r"'padim', and images are compared.*'musc' alone"):
        mutual.run(str(images), str(tmp_path / "m"), str(tmp_path / "s"), other, LOCAL)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_the_command_and_its_dry_run(patchlake, images: Path, done: Path, tmp_path: Path):
    asked = ("mutual", images, tmp_path / "model", tmp_path / "scores", *FLAGS)
    shown = patchlake(*asked, "--dry-run")
    assert shown.code == 0
    assert "dry run of fit" in shown.out
    assert "measures the score" in shown.err
    assert not list(tmp_path.iterdir())
    found = patchlake(*asked)
    assert found.code == 0, found.err
    assert "scored 44 of 44 images" in found.out
    assert "every image is taken, whatever its label and split" in found.err
    assert output_files(tmp_path / "scores") == output_files(done / "scores")
    shown = patchlake(*asked, "--dry-run")
    assert "dry run of score" in shown.out


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_local_write_the_same_bytes(
    done: Path, images: Path, tmp_path: Path, one_actor: None
):
    compare(images, tmp_path, Execution("ray", None))
    assert output_files(tmp_path / "scores") == output_files(done / "scores")


@pytest.fixture
def cloth(images: Path, tmp_path: Path) -> Path:
    """A lake of one file of 22 images."""
    root = tmp_path / "lake"
    root.mkdir()
    shutil.copy(next(images.glob("g=woven_cloth/*.parquet")), root / "cloth.parquet")
    return root


@pytest.mark.slow
def test_a_label_that_changes_is_no_matter_and_an_image_that_goes_is(cloth: Path, tmp_path: Path):
    compare(cloth, tmp_path)
    table = pq.ParquetFile(cloth / "cloth.parquet").read()
    at = table.column_names.index("label")
    bad = table.set_column(at, "label", pa.array(["scratch"] * len(table)))
    pq.write_table(bad, cloth / "cloth.parquet")
    found = status.with_changed(
        Folder(str(tmp_path / "model")), status.read(str(tmp_path / "model"))
    )
    assert [state.changed for state in found] == [{}]
    pq.write_table(bad.slice(1), cloth / "cloth.parquet")
    found = status.with_changed(
        Folder(str(tmp_path / "model")), status.read(str(tmp_path / "model"))
    )
    (gone,) = found[0].changed["woven_cloth"].items()
    assert gone == (table["image_id"][0].as_py(), GONE)


@pytest.mark.slow
def test_images_that_stand_out_are_not_judged_by(cloth: Path, tmp_path: Path):
    """Else the worst of them would set the threshold that it is held against."""
    table = pq.ParquetFile(cloth / "cloth.parquet").read()
    pictures = table["image"].to_pylist()
    odd = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sink = io.BytesIO()
    odd.save(sink, "png")
    table = table.drop_columns(["sha256"]).set_column(
        table.column_names.index("image"), "image", pa.array([sink.getvalue(), *pictures[1:]])
    )
    pq.write_table(table, cloth / "cloth.parquet")
    compare(cloth, tmp_path)
    (record,) = read_manifest(Folder(str(tmp_path / "model"))).groups.values()
    suspects = pq.read_table(tmp_path / "model" / "suspects.parquet").to_pylist()
    named = {row["image_id"] for row in suspects if row["is_suspect"]}
    worst = table["image_id"][0].as_py()
    assert worst in named
    assert record.facts["judged_images"] == 22 - len(named)
    rows = {row["image_id"]: row for row in read_scores(tmp_path / "scores").to_pylist()}
    assert rows[worst]["is_anomalous"]
    assert rows[worst]["p_value"] == min(row["p_value"] for row in rows.values())
    assert rows[worst]["p_value"] == pytest.approx(record.facts["smallest_false_alarm_rate"])
