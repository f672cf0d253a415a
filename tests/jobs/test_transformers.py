"""The presets of methods on DINOv3, with a small untrained network of its kind.

Nobody here has its weights: shapes, ranges and equal bytes are shown, and not what it finds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.model_store.models import Manifest
from patchlake.pipeline.presets import PRESETS
from tests.conftest import LOCAL, TINY, by_place, output_files

# Twelve blocks of 192 dimensions, patches of 16 pixels, rotary positions as the large ones have.
NETWORK = "vit_tiny_patch16_dinov3_qkvb"
BLOCKS = [3, 6, 9, 11]
# In place of the preset's image: 6 x 6 patches, of which a tile has 4 x 4; and 3 x 3 of a crop.
IMAGE = {
    "superadd_paper": {"resize": [96, 96], "pixels": None, "tile": {"size": 64, "overlap": 32}},
    "rad_paper": {"resize": [64, 64], "crop": 48},
}
SIDE = {"superadd_paper": 6, "rad_paper": 3}
# What takes long, and more images than there are.
LESS: Mapping[str, dict[str, object]] = {
    "superadd_paper": {"coreset_fraction": 0.2},
    "rad_paper": {"retrieved": 5},
}


def settings_of(preset: str, /, **changed: object) -> Settings:
    own = {
        "preset": preset,
        "image": IMAGE[preset],
        "backbone": {"name": NETWORK, "layers": BLOCKS, "weights": "untrained"},
        "method": PRESETS[preset]["method"] | LESS[preset],
    }
    return load_settings(flags=TINY | own | changed)


@dataclass(frozen=True)
class Done:
    preset: str
    model: Path
    scores: Path
    manifest: Manifest


@pytest.fixture(scope="module", params=sorted(IMAGE))
def done(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    root, settings = tmp_path_factory.mktemp(request.param), settings_of(request.param)
    manifest = fit.run(str(images), str(root / "model"), settings, LOCAL)
    score.run(str(images), str(root / "model"), str(root / "scores"), settings, LOCAL)
    return Done(request.param, root / "model", root / "scores", manifest)


@pytest.mark.slow
def test_each_image_has_a_map_of_its_patches(done: Done):
    side = SIDE[done.preset]
    for row in by_place(done.scores).values():
        assert row["status"] == "ok"
        assert (row["map_height"], row["map_width"]) == (side, side)
        # The mean of the largest, of which few patches have one.
        assert row["image_score"] == pytest.approx(max(row["anomaly_map"]))
        assert row["image_score"] > 0
        if done.preset == "rad_paper":
            # 1 - cos.
            assert 0 <= min(row["anomaly_map"]) <= row["image_score"] <= 2


@pytest.mark.slow
def test_each_block_has_its_bank_or_its_part_of_the_gallery(done: Done):
    for group in done.manifest.groups.values():
        if done.preset == "superadd_paper":
            assert [group.facts[f"layer{n}.patches"] for n in range(4)] == [12 * 36] * 4
            assert group.facts["bank_rows"] == 4 * int(12 * 36 * 0.2)
        else:
            # 9 patches of 4 blocks in float16.
            assert group.facts["gallery_bytes"] == 12 * 9 * 4 * 192 * 2
            assert group.facts["bank_rows"] == 12


@pytest.mark.slow
def test_batches_and_threads_change_no_byte(
    done: Done, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Execution, "threads", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._EMBEDDED_BYTES", 1)
    monkeypatch.setattr("patchlake.pipeline.stages.infer._PIECE", 1)
    score.run(str(images), str(done.model), str(tmp_path), settings_of(done.preset), LOCAL)
    assert output_files(tmp_path) == output_files(done.scores)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_actor")
def test_ray_and_local_write_the_same_bytes(done: Done, images: Path, tmp_path: Path):
    settings, on_ray = settings_of(done.preset), Execution("ray", None)
    model, scores = tmp_path / "model", tmp_path / "scores"
    assert fit.run(str(images), str(model), settings, on_ray).groups == done.manifest.groups
    score.run(str(images), str(model), str(scores), settings, on_ray)
    assert output_files(scores) == output_files(done.scores)
