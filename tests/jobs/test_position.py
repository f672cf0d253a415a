"""A bank that is searched near places, through the commands: fit, score, update, withdraw."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, score, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.model_store.models import GroupRecord, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

# 8 x 8 patches.
NEAR = {"coreset_fraction": 0.1, "position_radius": 1}


def settings_of(**changed: object) -> Settings:
    return load_settings(flags=TINY | {"method": NEAR} | changed)


@pytest.fixture(scope="module")
def near(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("near")
    fit.run(str(images), str(model), settings_of(), LOCAL)
    return model


@pytest.fixture(scope="module")
def near_scores(images: Path, near: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = tmp_path_factory.mktemp("near_scores")
    score.run(str(images), str(near), str(scores), settings_of(), LOCAL)
    return scores


def groups_of(model: Path) -> dict[str, GroupRecord]:
    return read_manifest(Folder(str(model))).groups


def file_of(model: Path, group: GroupRecord, role: str) -> Path:
    return model / next(file.name for file in group.files if file.role == role)


def test_places_are_in_the_state_and_are_those_of_provenance(near: Path):
    for group in groups_of(near).values():
        state = load_file(file_of(near, group, "state.safetensors"))
        told = pq.read_table(file_of(near, group, "provenance.parquet"), partitioning=None)
        places = np.stack([told.column("y").to_numpy(), told.column("x").to_numpy()], axis=1)
        np.testing.assert_array_equal(state["places"], places)
        np.testing.assert_array_equal(state["grid"], [8, 8])
        assert group.facts["position_radius"] == 1
        assert group.facts["uncovered_places"] == 0
        assert group.facts["bank_rows"] == len(places) == 76
        assert group.facts["covering_radius"] > 0


def test_scores_are_not_those_of_a_search_anywhere(near_scores: Path, scores: Path):
    here, anywhere = by_place(near_scores), by_place(scores)
    assert here.keys() == anywhere.keys()
    assert all(row["status"] == "ok" for row in here.values())
    assert any(row["anomaly_map"] != anywhere[place]["anomaly_map"] for place, row in here.items())
    assert all(row["model_id"] != anywhere[place]["model_id"] for place, row in here.items())


def test_a_radius_over_the_whole_grid_scores_as_none(images: Path, scores: Path, tmp_path: Path):
    settings = settings_of(method=NEAR | {"position_radius": 7})
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    anywhere = by_place(scores)
    for place, row in by_place(tmp_path / "scores").items():
        for name in ("image_score", "anomaly_map", "p_value", "regions"):
            assert row[name] == anywhere[place][name]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_actor")
def test_on_ray_the_same_bytes(images: Path, near: Path, near_scores: Path, tmp_path: Path):
    ray = Execution("ray", None)
    fit.run(str(images), str(tmp_path / "model"), settings_of(), ray)
    assert {n: g.digest for n, g in groups_of(tmp_path / "model").items()} == {
        n: g.digest for n, g in groups_of(near).items()
    }
    score.run(str(images), str(near), str(tmp_path / "scores"), settings_of(), ray)
    assert output_files(tmp_path / "scores") == output_files(near_scores)


def test_a_fit_that_memory_does_not_hold_covers_each_place(images: Path, tmp_path: Path):
    method = NEAR | {"coreset": "partitioned"}
    fit.run(str(images), str(tmp_path), settings_of(method=method), LOCAL)
    for group in groups_of(tmp_path).values():
        facts = group.facts
        assert (facts["coreset"], facts["uncovered_places"]) == ("partitioned", 0)
        assert 0 < float(facts["covering_radius"]) <= float(facts["radius_bound"])


def test_where_images_leave_places_stay_with_the_rows(images: Path, near: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(near, model)
    before = groups_of(near)["woven_cloth"]
    told = pq.read_table(file_of(near, before, "provenance.parquet"), partitioning=None)
    gone = told.column("image_id")[0].as_py()
    leaving = withdraw.Withdrawal((gone,), "woven_cloth")
    withdraw.run(str(model), leaving, settings_of(), LOCAL)
    after = groups_of(model)["woven_cloth"]
    kept = [row for row in told.to_pylist() if row["image_id"] != gone]
    state = load_file(file_of(model, after, "state.safetensors"))
    assert [tuple(place) for place in state["places"].tolist()] == [(r["y"], r["x"]) for r in kept]
    assert after.facts["bank_rows"] == len(kept) < 76
    assert float(after.facts["radius_bound"]) > float(before.facts["covering_radius"])
    score.run(str(images), str(model), str(tmp_path / "scores"), settings_of(), LOCAL)
    assert all(row["status"] == "ok" for row in by_place(tmp_path / "scores").values())


def test_places_that_do_not_fit_the_bank_are_named(images: Path, near: Path, tmp_path: Path):
    from hashlib import sha256

    from patchlake.pipeline.model_store.identity import Identity
    from patchlake.pipeline.model_store.models import FileRecord

    model = tmp_path / "model"
    shutil.copytree(near, model)
    group = groups_of(model)["woven_cloth"]
    path = file_of(model, group, "state.safetensors")
    state = load_file(path)
    content = save({"places": state["places"] + np.int32(3), "grid": state["grid"]})
    path.write_bytes(content)
    # As somebody would who also wrote down the new digests.
    changed = sha256(content).hexdigest()
    name = str(path.relative_to(model))
    files = [
        FileRecord(role=f.role, name=f.name, bytes=len(content), sha256=changed)
        if f.name == name
        else f
        for f in group.files
    ]
    digest = Identity.of(read_manifest(Folder(str(model)))).group_digest(files)
    told = json.loads((model / "model.json").read_text())
    told["groups"]["woven_cloth"]["files"] = [file.model_dump() for file in files]
    told["groups"]["woven_cloth"]["digest"] = digest
    (model / "model.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="places do not fit 76 bank rows and a grid of 8 x 8"):
        score.run(str(images), str(model), str(tmp_path / "scores"), settings_of(), LOCAL)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_is_refused(kind: str, images: Path, tmp_path: Path):
    settings = settings_of(index={"kind": kind})
    with pytest.raises(ConfigError, match=rf"index\.kind={kind}: .*position_radius=1 .*=exact"):
        fit.run(str(images), str(tmp_path), settings, LOCAL)
    assert not list(tmp_path.iterdir())


def test_a_bank_beyond_the_memory_budget_is_refused(images: Path, tmp_path: Path):
    model, method = str(tmp_path / "model"), NEAR | {"coreset": "driver"}
    settings = settings_of(index={"shard_bytes": 20_000}, method=method)
    fit.run(str(images), model, settings, LOCAL)
    small = settings_of(memory_budget=100_000)
    with pytest.raises(ConfigError, match=r"not split over processes: raise memory_budget"):
        score.run(str(images), model, str(tmp_path / "scores"), small, LOCAL)
