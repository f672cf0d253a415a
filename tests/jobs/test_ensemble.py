"""Several models in one pass: the scores are those of the members, brought to one unit."""

from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.groups.files import load_calibration
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.scores.ensemble import ensemble_maps, ensemble_scores
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files
from tests.jobs.conftest import WHERE, FittedBy
from tests.small import SMALL


def settings_of(**changed: object) -> Settings:
    return load_settings(flags=TINY | changed)


def scoring(**changed: object) -> Settings:
    """Settings that no model has fixed."""
    fixed = ("image", "backbone", "method")
    return load_settings(flags={k: v for k, v in TINY.items() if k not in fixed} | changed)


NO_PICTURES = {"heatmaps": "none"}


@pytest.fixture(scope="module")
def members(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PatchCore; PaDiM of other layers; DN2; and PatchCore of smaller images."""
    root = tmp_path_factory.mktemp("members")
    changes: dict[str, dict[str, object]] = {
        "padim": {"method": {"name": "padim", "dimensions": 10}},
        "dn2": {"method": {"name": "dn2"}},
        "small": {"image": {"resize": [32, 32]}},
    }
    for name, changed in changes.items():
        fit.run(str(images), str(root / name), settings_of(**changed), LOCAL)
    return {"patchcore": model} | {name: root / name for name in changes}


def run(images: Path, models: list[Path], out: Path, where: str | None = None, **changed: object):
    named = [str(model) for model in models]
    return score.run(str(images), named, str(out), scoring(**changed), LOCAL, where=where)


def calibrations(model: Path) -> dict[str, Calibration]:
    folder = Folder(str(model))
    groups = read_manifest(folder).groups
    return {group: load_calibration(folder, record) for group, record in groups.items()}


@pytest.mark.parametrize("names", [["patchcore", "padim", "dn2"], ["patchcore", "small"]])
def test_the_scores_are_means_of_the_members_own_in_their_units(
    names: list[str], images: Path, members: dict[str, Path], tmp_path: Path
):
    assert_means_of_members(images, {name: members[name] for name in names}, tmp_path)


@pytest.mark.slow
def test_all_methods_score_together(images: Path, fitted_by: FittedBy, tmp_path: Path):
    """Those with maps, of grids of two sizes, and those without."""
    models = {name: fitted_by(name) for name in sorted(SMALL)}
    assert_means_of_members(images, models, tmp_path, where=WHERE)


def assert_means_of_members(
    images: Path, models: dict[str, Path], tmp_path: Path, where: str | None = None
) -> None:
    run(images, list(models.values()), tmp_path / "all", where, score=NO_PICTURES)
    alone, units = [], []
    for name, model in models.items():
        run(images, [model], tmp_path / name, where, score=NO_PICTURES)
        alone.append(by_place(tmp_path / name))
        units.append(calibrations(model))
    together = by_place(tmp_path / "all")
    assert len(together) == (22 if where else 44)
    for place, row in together.items():
        own = [rows[place] for rows in alone]
        unit = [one[row["group"]] for one in units]
        scores = [np.array([one["image_score"]], np.float32) for one in own]
        assert row["image_score"] == ensemble_scores(scores, unit)[0]
        grids = [
            None
            if one["anomaly_map"] is None
            else np.array(one["anomaly_map"], np.float32).reshape(
                1, one["map_height"], one["map_width"]
            )
            for one in own
        ]
        wanted = ensemble_maps(grids, unit)
        assert wanted is not None
        assert (row["map_height"], row["map_width"]) == wanted.shape[1:]
        np.testing.assert_array_equal(row["anomaly_map"], wanted.ravel())


@pytest.mark.slow
def test_the_order_of_models_and_the_images_of_a_batch_change_no_byte(
    images: Path, members: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = [members["patchcore"], members["padim"], members["small"]]
    run(images, one, tmp_path / "one")
    monkeypatch.setattr("patchlake.pipeline.stages.infer._EMBEDDED_BYTES", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._PIECE", 1)
    run(images, one[::-1], tmp_path / "other")
    found = output_files(tmp_path / "one")
    assert found == output_files(tmp_path / "other")
    assert sum(name.endswith(".jpg") for name in found) == 44


def test_members_of_one_backbone_share_its_features(
    images: Path, members: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    embed = Extractor.of_piece

    def counted(self, pixels, interiors):
        seen.append(len(pixels))
        return embed(self, pixels, interiors)

    monkeypatch.setattr(Extractor, "of_piece", counted)
    run(images, [members[name] for name in ("patchcore", "padim", "dn2")], tmp_path)
    assert sum(seen) == 44


def test_a_group_that_one_member_lacks_has_no_model(
    images: Path, members: dict[str, Path], tmp_path: Path
):
    partial = tmp_path / "partial"
    fit.run(
        str(images),
        str(partial),
        settings_of(method={"name": "dn2", "neighbours": 3}),
        LOCAL,
        where="g == 'woven_cloth'",
    )
    summary = run(images, [members["patchcore"], partial], tmp_path / "scores", max_failed=1)
    assert summary.statuses == {"ok": 22, "no_model": 22}


def test_what_cannot_go_together_is_refused(images: Path, members: dict[str, Path], tmp_path: Path):
    with pytest.raises(ConfigError, match="name each once"):
        run(images, [members["dn2"], members["dn2"]], tmp_path / "scores")
    cropped = tmp_path / "cropped"
    crop = {"image": {"resize": 72, "crop": 64}}
    fit.run(str(images), str(cropped), settings_of(**crop), LOCAL)
    with pytest.raises(ConfigError, match="different parts of an image"):
        run(images, [members["dn2"], cropped], tmp_path / "scores")
    other = tmp_path / "other"
    backbone = {"name": "resnet18.tv_in1k", "weights": "untrained"}
    fit.run(str(images), str(other), settings_of(backbone=backbone), LOCAL)
    with pytest.raises(ConfigError, match=r"weights is one file"):
        run(
            images,
            [members["dn2"], other],
            tmp_path / "scores",
            backbone={"weights": "untrained"},
        )


def test_the_command_takes_further_models(
    images: Path, members: dict[str, Path], tmp_path: Path, patchlake
):
    result = patchlake(
        *("score", images, members["patchcore"], tmp_path / "scores", "--model", members["dn2"]),
        *("--runner", "local", "--heatmaps", "none"),
    )
    assert result.code == 0, result.err
    assert "scored 44 of 44 images" in result.out


@pytest.mark.ray
@pytest.mark.slow
def test_ray_and_local_write_the_same_bytes(
    images: Path, members: dict[str, Path], tmp_path: Path, local_ray: None
):
    models = [str(members[name]) for name in ("patchcore", "padim", "small")]
    run(images, [Path(model) for model in models], tmp_path / "local")
    on_ray = Execution("ray", None)
    score.run(str(images), models, str(tmp_path / "ray"), scoring(workers=2), on_ray)
    assert output_files(tmp_path / "ray") == output_files(tmp_path / "local")
