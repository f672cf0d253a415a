"""The whole way on a tiny lake: what goes in, what comes out, and that nothing else matters."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import evaluate, fit, ingest, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import IMAGES, SCORES
from tests.conftest import LOCAL, TINY, by_place, output_files, read_scores

PRODUCTS = ["brushed_plate", "woven_cloth"]


def test_ingest_writes_the_images_table_with_the_bytes_untouched(images: Path, pictures: Path):
    files = sorted(images.glob("g=*/*.parquet"))
    assert [file.parent.name for file in files] == [f"g={name}" for name in PRODUCTS]
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    assert pq.ParquetFile(files[0]).schema_arrow.names == IMAGES.names
    assert len(rows) == 2 * (12 + 4 + 3 * 2)
    for row in rows:
        assert row["image"] == (pictures / row["image_id"]).read_bytes()
        assert (row["mask"] is not None) == (row["label"] != "good")
    assert {row["split"] for row in rows} == {"train", "test"}


def test_ingest_again_appends_nothing(images: Path, pictures: Path, tiny: Settings):
    before = output_files(images)
    again = ingest.run(str(pictures), str(images), Arrangement(), tiny, LOCAL)
    assert again.images == 0
    assert output_files(images) == before


def test_ingest_lists_files_that_are_no_images(tmp_path: Path, pictures: Path, patchlake):
    source = tmp_path / "photographs"
    source.mkdir()
    good = next(pictures.rglob("*.png")).read_bytes()
    (source / "part 1.png").write_bytes(good)
    (source / "notes.png").write_text("shift 2: camera cleaned")
    (source / "empty.jpg").touch()
    result = patchlake("ingest", source, tmp_path / "images", "--runner", "local")
    assert result.code == 0
    assert "ingested 1 images" in result.out
    assert "left out: 2 not an image" in result.out
    assert "notes.png" in result.err
    assert "empty.jpg" in result.err


def test_fit_publishes_one_model_a_group_with_provenance(images: Path, model: Path):
    manifest = read_manifest(Folder(str(model)))
    assert list(manifest.groups) == PRODUCTS
    for group, record in manifest.groups.items():
        assert record.images == 12
        # 64 px over a stride of 8 is a grid of 8 x 8.
        assert record.facts["patches"] == 12 * 8 * 8
        assert record.facts["bank_rows"] == int(12 * 64 * 0.1)
        provenance = next(file.name for file in record.files if "provenance" in file.role)
        rows = pq.ParquetFile(model / provenance).read().to_pylist()
        assert len(rows) == record.facts["bank_rows"]
        assert all(row["image_id"].startswith(f"{group}/train/good/") for row in rows)
        assert all(row["y"] < 8 and row["x"] < 8 for row in rows)
    assert not list(model.glob("_runs/*/partials")), "partial results go when the model is there"


def test_score_writes_one_row_for_each_image_in_the_declared_schema(images: Path, scores: Path):
    table = read_scores(scores)
    assert table.schema.names == SCORES.names
    assert table.schema.types == SCORES.types
    wanted = {
        (str(file.relative_to(images)), row)
        for file in images.glob("g=*/*.parquet")
        for row in range(pq.ParquetFile(file).metadata.num_rows)
    }
    assert len(table) == len(wanted) == 44
    assert set(by_place(scores)) == wanted
    assert set(table.column("status").to_pylist()) == {"ok"}
    for row in table.to_pylist():
        # The image score is the farthest patch, as a raw distance.
        assert row["image_score"] == max(row["anomaly_map"])
        assert (row["map_height"], row["map_width"]) == (8, 8)
        assert (row["width"], row["height"]) == (256, 256)
        assert (scores / row["heatmap_path"]).is_file()


def test_scoring_again_does_nothing_and_a_lost_part_is_made_again_the_same(
    images: Path, model: Path, tmp_path: Path, tiny: Settings
):
    first = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    assert first.already_done == 0
    before = output_files(tmp_path)
    again = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    assert (again.already_done, again.statuses) == (again.fragments, {})
    lost = tmp_path / first.parts[1]
    lost.unlink()
    resumed = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    assert resumed.already_done == resumed.fragments - 1
    assert output_files(tmp_path) == before


@pytest.mark.parametrize("changed", [{"memory_budget": 2**26}, {"max_failed": 0.5}])
def test_settings_that_only_steer_the_work_change_no_byte(
    changed: dict[str, object], images: Path, model: Path, scores: Path, tmp_path: Path
):
    score.run(str(images), str(model), str(tmp_path), load_settings(flags=TINY | changed), LOCAL)
    assert output_files(tmp_path) == output_files(scores)


@pytest.mark.parametrize("fragment_images", [1, 3, 100])
def test_scores_do_not_depend_on_the_cut_into_fragments(
    fragment_images: int, images: Path, model: Path, scores: Path, tmp_path: Path
):
    cut = load_settings(flags=TINY | {"fragment_images": fragment_images})
    score.run(str(images), str(model), str(tmp_path), cut, LOCAL)
    expected = by_place(scores)
    for place, row in by_place(tmp_path).items():
        assert row["image_score"] == expected[place]["image_score"]
        assert row["anomaly_map"] == expected[place]["anomaly_map"]


def test_the_model_does_not_depend_on_the_cut_or_the_runner(
    images: Path, model: Path, tmp_path: Path
):
    cut = load_settings(flags=TINY | {"fragment_images": 5})
    fit.run(str(images), str(tmp_path), cut, LOCAL)
    digests = [
        {group: record.digest for group, record in read_manifest(Folder(str(at))).groups.items()}
        for at in (model, tmp_path)
    ]
    assert digests[0] == digests[1]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_local_write_the_same_bytes(
    images: Path, model: Path, scores: Path, tmp_path: Path, tiny: Settings, local_ray: None
):
    on_ray = Execution("ray", None)
    fit.run(str(images), str(tmp_path / "model"), tiny, on_ray)
    manifests = [read_manifest(Folder(str(at))) for at in (model, tmp_path / "model")]
    assert manifests[0].groups == manifests[1].groups
    two = tiny.model_copy(update={"workers": 2})
    summary = score.run(str(images), str(model), str(tmp_path / "scores"), two, on_ray)
    assert summary.statuses == {"ok": 44}
    assert output_files(tmp_path / "scores") == output_files(scores)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_packs_several_files(pictures: Path, tmp_path: Path, local_ray: None, tiny: Settings):
    written = ingest.run(
        str(pictures), str(tmp_path), Arrangement("mvtec"), tiny, Execution("ray", None)
    )
    assert written.images == 44
    assert len(list(tmp_path.glob("g=*/*.parquet"))) == 2


def test_reweighted_scores_are_eq_7_of_the_same_bank(images: Path, scores: Path, tmp_path: Path):
    method = {"coreset_fraction": 0.1, "image_score": "reweighted"}
    settings = load_settings(flags=TINY | {"method": method})
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    plain = by_place(scores)
    for place, row in by_place(tmp_path / "scores").items():
        assert row["anomaly_map"] == plain[place]["anomaly_map"]
        assert 0 <= row["image_score"] < plain[place]["image_score"] or row["image_score"] == 0


def test_a_bank_of_all_patches_scores_its_own_images_zero(images: Path, tmp_path: Path):
    settings = load_settings(flags=TINY | {"method": {"coreset_fraction": 1.0}})
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    rows = read_scores(tmp_path / "scores").to_pylist()
    trained = [row for row in rows if "/train/" in row["image_id"]]
    assert len(trained) == 24
    assert all(row["image_score"] == 0 for row in trained)
    assert all(row["image_score"] > 0 for row in rows if "/test/" in row["image_id"])


def test_the_papers_geometry_and_embedding_run_as_a_preset(
    pictures: Path, tmp_path: Path, patchlake
):
    # A smaller network than the preset's: the official embedding refuses it, concat takes it.
    flags = (
        "--preset",
        "patchcore_paper",
        "--runner",
        "local",
        "--set",
        "backbone.weights=untrained",
    )
    lake = tmp_path / "images"
    patchlake("ingest", pictures / "woven_cloth", lake, "--runner", "local")
    refused = patchlake("fit", lake, tmp_path / "model", *flags, "--backbone", "resnet18.tv_in1k")
    assert refused.code == 2
    assert "embedding=concat" in refused.err
    concat = (*flags, "--backbone", "resnet18.tv_in1k", "--set", "method.embedding=concat")
    assert patchlake("fit", lake, tmp_path / "model2", *concat).code == 0
    manifest = read_manifest(Folder(str(tmp_path / "model2")))
    assert manifest.preset == "patchcore_paper"
    assert (manifest.geometry.resize, manifest.geometry.crop) == (256, 224)
    assert manifest.method_options["image_score"] == "reweighted"


def test_where_keeps_whole_fragments(
    images: Path, model: Path, tmp_path: Path, tiny: Settings, patchlake
):
    where = "group == 'woven_cloth'"
    summary = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL, where=where)
    assert summary.images == 22
    assert {row["group"] for row in read_scores(tmp_path).to_pylist()} == {"woven_cloth"}
    # The same scores, completed later, are those of one run.
    score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    assert len(read_scores(tmp_path)) == 44


def test_a_changed_input_file_replaces_its_old_parts(
    images: Path, model: Path, tmp_path: Path, tiny: Settings
):
    lake = tmp_path / "images"
    for file in images.glob("g=*/*.parquet"):
        (lake / file.parent.name).mkdir(parents=True)
        (lake / file.parent.name / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "scores"
    score.run(str(lake), str(model), str(out), tiny, LOCAL)
    changed = next(lake.glob("g=woven_cloth/*.parquet"))
    shorter = pq.ParquetFile(changed).read().slice(0, 15)
    pq.write_table(shorter, changed)
    summary = score.run(str(lake), str(model), str(out), tiny, LOCAL)
    assert len(summary.removed_parts) == 3
    rows = read_scores(out).to_pylist()
    assert len(rows) == 22 + 15
    pictures_left = {str(p.relative_to(out)) for p in out.glob("_heatmaps/**/*.jpg")}
    assert pictures_left == {row["heatmap_path"] for row in rows}


def test_evaluate_prints_metrics_that_fit_the_scores(images: Path, scores: Path, patchlake):
    result = patchlake("evaluate", images, scores, "--json")
    assert result.code == 0
    metrics = json.loads(result.out)
    assert list(metrics["groups"]) == PRODUCTS
    for name in PRODUCTS:
        values = metrics["groups"][name]
        assert (values["images"], values["anomalous"]) == (10, 6)
        rows = [r for r in read_scores(scores).to_pylist() if f"{name}/test/" in r["image_id"]]
        good = np.array([r["image_score"] for r in rows if "/good/" in r["image_id"]])
        bad = np.array([r["image_score"] for r in rows if "/good/" not in r["image_id"]])
        pairs = (bad[:, None] > good).mean() + (bad[:, None] == good).mean() / 2
        assert values["image_auroc"] == pytest.approx(pairs)
    means = [metrics["groups"][name]["aupro"] for name in PRODUCTS]
    assert metrics["mean"]["aupro"] == pytest.approx(np.mean(means))
    assert "0." in patchlake("evaluate", images, scores).out


def test_evaluate_without_labels_says_so(model: Path, tmp_path: Path, pictures: Path, patchlake):
    source = pictures / "woven_cloth" / "test" / "good"
    lake, out = tmp_path / "images", tmp_path / "scores"
    patchlake("ingest", source, lake, "--group", "woven_cloth", "--runner", "local")
    assert patchlake("score", lake, model, out, "--runner", "local").code == 0
    result = patchlake("evaluate", lake, out)
    assert result.code == 2
    assert "label" in result.err


def test_a_group_without_labels_is_fitted_on_all_its_images_and_says_so(
    pictures: Path, tmp_path: Path, tiny: Settings, patchlake
):
    source = pictures / "woven_cloth" / "train" / "good"
    patchlake("ingest", source, tmp_path / "images", "--group", "cloth", "--runner", "local")
    fit.run(str(tmp_path / "images"), str(tmp_path / "model"), tiny, LOCAL)
    manifest = read_manifest(Folder(str(tmp_path / "model")))
    assert manifest.groups["cloth"].images == 12


def test_an_existing_different_model_needs_overwrite(images: Path, tmp_path: Path, tiny: Settings):
    fit.run(str(images), str(tmp_path), tiny, LOCAL)
    before = output_files(tmp_path)
    fit.run(str(images), str(tmp_path), tiny, LOCAL)
    assert output_files(tmp_path) == before, "the same fit again has nothing to do"
    other = load_settings(flags=TINY | {"seed": 1})
    with pytest.raises(ConfigError, match="--overwrite"):
        fit.run(str(images), str(tmp_path), other, LOCAL)
    fit.run(str(images), str(tmp_path), other, LOCAL, overwrite=True)
    assert read_manifest(Folder(str(tmp_path))).settings.seed == 1


def test_two_score_tables_of_other_images_do_not_mix(
    images: Path, model: Path, scores: Path, tmp_path: Path, tiny: Settings
):
    lake = tmp_path / "g=woven_cloth"
    lake.mkdir()
    file = next(images.glob("g=woven_cloth/*.parquet"))
    (lake / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="choose another folder"):
        evaluate.run(str(tmp_path), str(scores))
