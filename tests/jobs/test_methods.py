"""Every method goes the same way, whatever it is: the contract of `pipeline.methods`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import evaluate, fit, score
from patchlake.pipeline.driver.execution import Execution, RunnerName
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.methods import build
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files, soak
from tests.small import EVERY, SMALL

# Whether a paper has an anomaly map. Of a method that is not here, images have maps, or none has.
HAS_MAP = {
    "cfa": True,
    "dn2": False,
    "mahalanobis": False,
    "musc": True,
    "padim": True,
    "patchcore": True,
    "spade": True,
}
# What it sees of the images is shuffled fragment by fragment.
DEPENDS_ON_FRAGMENTS = {"cfa"}
# One of each way through a cluster: workers in step, sums over fragments, a bank that is selected,
# galleries. DN2 gathers as PatchCore does; PaDiM is fitted on Ray below, and in
# test_update.py.
ON_RAY, SOAKED = ("mahalanobis", "patchcore"), ("cfa", "spade")


def settings_of(name: str, /, **changed: object) -> Settings:
    own = {"method": {"name": name} | SMALL[name]}
    return load_settings(flags=TINY | own | changed)


@dataclass(frozen=True)
class Done:
    method: str
    model: Path
    scores: Path
    manifest: Manifest

    @property
    def has_map(self) -> bool:
        """Whether the scores of its first image come with a map."""
        return next(iter(by_place(self.scores).values()))["anomaly_map"] is not None


@pytest.fixture(scope="module", params=EVERY)
def done(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    """The undisturbed result of one method, by the local runner."""
    root = tmp_path_factory.mktemp(request.param)
    settings = settings_of(request.param)
    manifest = fit.run(str(images), str(root / "model"), settings, LOCAL)
    score.run(str(images), str(root / "model"), str(root / "scores"), settings, LOCAL)
    return Done(request.param, root / "model", root / "scores", manifest)


@pytest.mark.parametrize("method", sorted(SMALL))
@pytest.mark.parametrize(
    "name", ["layers", "calibration_images", "exact_because", "scored_together"]
)
def test_what_a_method_says_of_itself_cannot_be_set(method: str, name: str):
    with pytest.raises(ConfigError, match=rf"setting 'method\.{name}' is unknown") as error:
        build(method, {name: 5})
    assert name not in str(error.value).partition("known:")[2]


@pytest.mark.parametrize("method", [n for n in sorted(SMALL) if build(n, {}).exact_because])
def test_an_approximate_index_is_refused_at_once_where_there_is_nothing_to_measure_it_with(
    method: str, images: Path, tmp_path: Path
):
    settings = settings_of(method, index={"kind": "hnsw"})
    with pytest.raises(ConfigError, match=rf"{method}.*hnsw: it has no .*; use .*=exact"):
        fit.run(str(images), str(tmp_path), settings, LOCAL)
    assert not list(tmp_path.iterdir())


def test_a_model_is_scored_by_the_seed_that_it_was_fitted_with(done: Done, images: Path, tmp_path):
    """PaDiM's channels hang on it, and untrained weights."""
    other = settings_of(done.method, seed=7)
    score.run(str(images), str(done.model), str(tmp_path), other, LOCAL)
    assert by_place(tmp_path) == by_place(done.scores)


def test_its_layers_are_those_of_its_paper_unless_they_are_set(done: Done):
    assert done.manifest.backbone.layers == build(done.method, {}).layers


def test_every_image_has_a_finite_score_and_a_map_or_none(done: Done):
    rows, has_map = by_place(done.scores), done.has_map
    assert len(rows) == 44
    assert has_map == HAS_MAP.get(done.method, has_map)
    for row in rows.values():
        assert row["status"] == "ok"
        assert np.isfinite(row["image_score"])
        assert row["image_score"] >= 0
        assert row["model_id"] == done.manifest.groups[row["group"]].digest
        if not has_map:
            columns = ("anomaly_map", "map_height", "map_width", "heatmap_path")
            assert [row[name] for name in columns] == [None] * 4
        else:
            assert len(row["anomaly_map"]) == row["map_height"] * row["map_width"]
            assert np.isfinite(row["anomaly_map"]).all()
            assert (done.scores / row["heatmap_path"]).is_file()
    assert (done.scores / "_heatmaps").exists() == has_map


def test_every_method_has_verdicts(done: Done):
    if done.method == "cfa":
        # Of a dozen images, it has trained on all.
        assert {row["is_anomalous"] for row in by_place(done.scores).values()} == {None}
        return
    for row in by_place(done.scores).values():
        assert row["is_anomalous"] == (row["image_score"] > row["threshold"])
        assert 0 < row["p_value"] <= 1


def test_verdicts_are_there_where_the_method_has_a_threshold(images: Path, tmp_path: Path):
    method = {"name": "mahalanobis", "false_positive_rate": 0.01}
    settings = settings_of("mahalanobis", method=method)
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    for row in by_place(tmp_path / "scores").values():
        assert row["is_anomalous"] == (row["image_score"] > row["threshold"])


def test_metrics_of_maps_are_there_where_maps_are(done: Done, images: Path):
    for values in evaluate.run(str(images), str(done.scores)).values():
        assert 0 <= values["image_auroc"] <= 1
        assert (values["pixel_auroc"] is None) == (not done.has_map)
        assert (values["aupro"] is None) == (not done.has_map)


def test_batches_and_threads_change_no_byte(
    done: Done, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Execution, "threads", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._EMBEDDED_BYTES", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._PIECE", 1)
    score.run(str(images), str(done.model), str(tmp_path), settings_of(done.method), LOCAL)
    assert output_files(tmp_path) == output_files(done.scores)


@pytest.mark.slow
def test_images_are_calibrated_five_at_once_as_sixteen(
    done: Done, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As alone, too: tests/jobs/test_calibration.py."""
    monkeypatch.setattr("patchlake.pipeline.groups.calibrate._IMAGES_AT_ONCE", 5)
    fives = fit.run(str(images), str(tmp_path), settings_of(done.method), LOCAL)
    assert fives.groups == done.manifest.groups


def test_fragments_change_no_score(
    done: Done, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if done.method in DEPENDS_ON_FRAGMENTS:
        pytest.skip("training shuffles fragment by fragment")
    monkeypatch.setattr("patchlake.pipeline.groups.corpus._FOLDED_AT_ONCE", 2)
    monkeypatch.setattr("patchlake.pipeline.groups.partials._PIECE_BYTES", 1)
    settings = settings_of(done.method, fragment_images=4)
    model, scores = tmp_path / "model", tmp_path / "scores"
    fit.run(str(images), str(model), settings, LOCAL)
    score.run(str(images), str(model), str(scores), settings, LOCAL)
    others = by_place(scores)
    for place, row in by_place(done.scores).items():
        assert others[place]["image_score"] == pytest.approx(row["image_score"], rel=1e-5)


def test_models_are_arrays_and_json(done: Done):
    endings = {path.suffix for path in done.model.rglob("*") if path.is_file()}
    assert endings <= {".json", ".safetensors", ".faiss", ".parquet", ".arrow"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("done", [*ON_RAY, *map(soak, SOAKED)], indirect=True)
def test_ray_and_local_write_the_same_bytes(
    done: Done, images: Path, tmp_path: Path, local_ray: None
):
    settings, on_ray = settings_of(done.method, workers=2), Execution("ray", None)
    model, scores = tmp_path / "model", tmp_path / "scores"
    fit.run(str(images), str(model), settings, on_ray)
    manifest = read_manifest(Folder(str(model)))
    assert manifest.groups == done.manifest.groups
    score.run(str(images), str(model), str(scores), settings, on_ray)
    assert output_files(scores) == output_files(done.scores)


def test_patchcore_on_the_tokens_of_a_vision_transformer(images: Path, tmp_path: Path):
    """The recipe of AnomalyDINO, with a small untrained network."""
    backbone = {"name": "vit_tiny_patch16_224", "layers": [11], "weights": "untrained"}
    preset = PRESETS["anomalydino_paper"]["method"] | {"coreset_fraction": 0.5}
    settings = load_settings(flags=TINY | {"backbone": backbone, "method": preset})
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    for row in by_place(tmp_path / "scores").values():
        # 64 pixels are four patches of 16 a side; 1 - cos lies in 0..2.
        assert (row["map_height"], row["map_width"]) == (4, 4)
        assert 0 <= min(row["anomaly_map"]) <= row["image_score"] <= 2


# On Ray, Mahalanobis AD's sums go the same way: test_ray_and_local_write_the_same_bytes.
@pytest.mark.parametrize(
    "runner", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.soak])]
)
def test_gaussians_beyond_the_memory_budget_are_fitted_location_by_location(
    runner: RunnerName,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    """By workers that hold some locations each, and with the same bytes as by all together."""
    if runner == "ray":
        request.getfixturevalue("local_ray")
    # 256 locations of 10 x 10 float64 are 0.2 MB, of which three are held.
    method = {"name": "padim", "dimensions": 10}
    whole = settings_of("padim", fragment_images=3, method=method)
    split = settings_of("padim", fragment_images=3, method=method, memory_budget=125_000)
    expected = fit.run(str(images), str(tmp_path / "whole"), whole, LOCAL)
    apart, once = StoredCorpus.reduce_apart, []

    def noted(corpus: StoredCorpus, folds, merge, ends):
        once.append(len(folds))
        return apart(corpus, folds, merge, ends)

    monkeypatch.setattr(StoredCorpus, "reduce_apart", noted)
    found = fit.run(str(images), str(tmp_path / runner), split, Execution(runner, None))
    assert once == [5, 5]
    for name, group in expected.groups.items():
        assert found.groups[name].files == group.files
