"""Banks of layers through the commands: fit, score, update, withdraw."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, score, update, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.model_store.models import GroupRecord, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

# 8 x 8 patches of 128 channels and 4 x 4 of 256, of 12 images.
APART = {"coreset_fraction": 0.1, "layers_apart": True}
ROWS, WIDTHS = [76, 19], [128, 256]


def settings_of(**changed: object) -> Settings:
    return load_settings(flags=TINY | {"method": APART} | changed)


@pytest.fixture(scope="module")
def apart(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("apart")
    fit.run(str(images), str(model), settings_of(), LOCAL)
    return model


@pytest.fixture(scope="module")
def apart_scores(images: Path, apart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = tmp_path_factory.mktemp("apart_scores")
    score.run(str(images), str(apart), str(scores), settings_of(), LOCAL)
    return scores


def groups_of(model: Path) -> dict[str, GroupRecord]:
    return read_manifest(Folder(str(model))).groups


def file_of(model: Path, group: GroupRecord, role: str) -> Path:
    return model / next(file.name for file in group.files if file.role == role)


def test_a_model_says_which_rows_are_of_which_layer(apart: Path):
    for group in groups_of(apart).values():
        state = load_file(file_of(apart, group, "state.safetensors"))
        np.testing.assert_array_equal(state["sizes"], list(zip(ROWS, WIDTHS, strict=True)))
        assert group.facts["bank_rows"] == sum(ROWS)
        assert group.facts["layers_apart"] == 2
        assert [group.facts[f"layer{n}.bank_rows"] for n in (0, 1)] == ROWS
        assert min(float(group.facts[f"layer{n}.covering_radius"]) for n in (0, 1)) > 0
        told = pq.read_table(file_of(apart, group, "provenance.parquet"), partitioning=None)
        assert told.column("y").to_numpy()[ROWS[0] :].max() <= 3
        assert told.column("y").to_numpy()[: ROWS[0]].max() > 3


def test_scores_have_a_map_on_the_finest_grid_and_verdicts(apart_scores: Path, scores: Path):
    joined = by_place(scores)
    for place, row in by_place(apart_scores).items():
        assert row["status"] == "ok"
        assert (row["map_height"], row["map_width"]) == (8, 8)
        assert row["image_score"] == max(row["anomaly_map"])
        assert row["is_anomalous"] == (row["image_score"] > row["threshold"])
        assert row["anomaly_map"] != joined[place]["anomaly_map"]


def test_batches_and_threads_change_no_byte(
    images: Path, apart: Path, apart_scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Execution, "threads", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._EMBEDDED_BYTES", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._PIECE", 1)
    score.run(str(images), str(apart), str(tmp_path), settings_of(), LOCAL)
    assert output_files(tmp_path) == output_files(apart_scores)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_actor")
def test_on_ray_the_same_bytes(images: Path, apart: Path, apart_scores: Path, tmp_path: Path):
    ray = Execution("ray", None)
    fit.run(str(images), str(tmp_path / "model"), settings_of(), ray)
    assert {n: g.digest for n, g in groups_of(tmp_path / "model").items()} == {
        n: g.digest for n, g in groups_of(apart).items()
    }
    score.run(str(images), str(apart), str(tmp_path / "scores"), settings_of(), ray)
    assert output_files(tmp_path / "scores") == output_files(apart_scores)


@pytest.mark.parametrize("coreset", ["driver", "partitioned"])
def test_with_places_as_well(coreset: str, images: Path, tmp_path: Path):
    settings = settings_of(method=APART | {"position_radius": 1, "coreset": coreset})
    model = tmp_path / "model"
    fit.run(str(images), str(model), settings, LOCAL)
    for group in groups_of(model).values():
        state = load_file(file_of(model, group, "state.safetensors"))
        told = pq.read_table(file_of(model, group, "provenance.parquet"), partitioning=None)
        places = np.stack([told.column("y").to_numpy(), told.column("x").to_numpy()], axis=1)
        stored = [state[f"layer{number}.places"] for number in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(stored), places)
        np.testing.assert_array_equal(state["layer1.grid"], [4, 4])
        assert [group.facts[f"layer{n}.uncovered_places"] for n in (0, 1)] == [0, 0]
    score.run(str(images), str(model), str(tmp_path / "scores"), settings, LOCAL)
    assert all(row["status"] == "ok" for row in by_place(tmp_path / "scores").values())


def test_images_join_each_layer(images: Path, apart: Path, tmp_path: Path):
    one = "woven_cloth/train/good/001.png"
    model = tmp_path / "model"
    fit.run(str(images), str(model), settings_of(), LOCAL, where=f"image_id <> '{one}'")
    first = groups_of(model)["woven_cloth"]
    update.run(str(images), str(model), settings_of(), LOCAL)
    found = groups_of(model)["woven_cloth"]
    assert (first.images, found.images) == (11, 12)
    # The share of all patches, of each layer.
    assert [found.facts[f"layer{n}.bank_rows"] for n in (0, 1)] == ROWS
    told = pq.read_table(file_of(model, found, "provenance.parquet"), partitioning=None)
    assert one in told.column("image_id").to_pylist()
    begun = load_file(file_of(model, first, "state.safetensors"))["sizes"][:, 0]
    assert (begun < ROWS).all()
    score.run(str(images), str(model), str(tmp_path / "scores"), settings_of(), LOCAL)
    assert all(row["status"] == "ok" for row in by_place(tmp_path / "scores").values())


def test_images_leave_each_layer(images: Path, apart: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(apart, model)
    before = groups_of(model)["woven_cloth"]
    told = pq.read_table(file_of(model, before, "provenance.parquet"), partitioning=None)
    gone = told.column("image_id")[0].as_py()
    withdraw.run(str(model), withdraw.Withdrawal((gone,), "woven_cloth"), settings_of(), LOCAL)
    after = groups_of(model)["woven_cloth"]
    left = [row["bank_row"] for row in told.to_pylist() if row["image_id"] != gone]
    state = load_file(file_of(model, after, "state.safetensors"))
    assert state["sizes"][:, 0].tolist() == [
        sum(row < ROWS[0] for row in left),
        sum(row >= ROWS[0] for row in left),
    ]
    assert after.facts["bank_rows"] == len(left) < sum(ROWS)
    score.run(str(images), str(model), str(tmp_path / "scores"), settings_of(), LOCAL)
    assert all(row["status"] == "ok" for row in by_place(tmp_path / "scores").values())


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_is_refused(kind: str, images: Path, tmp_path: Path):
    settings = settings_of(index={"kind": kind})
    with pytest.raises(ConfigError, match=rf"index\.kind={kind}: .*layers_apart=true .*=exact"):
        fit.run(str(images), str(tmp_path), settings, LOCAL)
    assert not list(tmp_path.iterdir())


def test_banks_beyond_the_memory_budget_are_refused(images: Path, tmp_path: Path):
    model = str(tmp_path / "model")
    fit.run(str(images), model, settings_of(index={"shard_bytes": 20_000}), LOCAL)
    small = settings_of(memory_budget=100_000)
    with pytest.raises(ConfigError, match=r"method\.layers_apart is not split over processes"):
        score.run(str(images), model, str(tmp_path / "scores"), small, LOCAL)
