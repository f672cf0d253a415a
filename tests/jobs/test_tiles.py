"""The real tile images with real weights, held against an independent exact implementation.

It has image AUROC 0.832, pixel AUROC 0.766 and AUPRO 0.697 (ResNet-18 layers 2 and 3, the whole
image at 224, a 1 % coreset, max as image score), with a spread of 0.008 over start points.
"""

from pathlib import Path

import pytest
import torch

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate, fit, ingest, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.features.precision import multiplies_bfloat16
from patchlake.pipeline.sources.sources import Arrangement
from tests.conftest import ASSETS, LOCAL, output_files

pytestmark = [pytest.mark.assets, pytest.mark.slow]

FLAGS = {
    "backbone": {
        "name": "resnet18.tv_in1k",
        "weights": str(ASSETS / "weights" / "resnet18.safetensors"),
        # As the independent implementation computes. In bfloat16 the greedy selection takes another
        # way, within the 0.008 that another start makes (docs/benchmarks.md).
        "precision": "float32",
    },
    "score": {"heatmaps": "none", "scored_at": "2026-01-01T00:00:00Z"},
}

# Images of the model are not evaluated, and take as long to score.
EVALUATED = "split = 'test'"

# Without a precision: bfloat16, where the processor has it.
CHOSEN = FLAGS | {
    "backbone": {name: FLAGS["backbone"][name] for name in ("name", "weights")},
}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    settings = load_settings(flags=FLAGS)
    source = str(ASSETS / "data" / "magnetic_tile")
    ingest.run(source, str(root / "images"), Arrangement(), settings, LOCAL)
    fit.run(str(root / "images"), str(root / "model"), settings, LOCAL)
    return root


def metrics(root: Path, scores: str) -> dict[str, float]:
    values = evaluate.run(str(root / "images"), str(root / scores))["magnetic_tile"]
    assert (values["images"], values["anomalous"]) == (583, 388)
    return {name: float(values[name] or 0) for name in ("image_auroc", "pixel_auroc", "aupro")}


def test_the_metrics_are_those_of_an_independent_implementation(tiles: Path):
    settings = load_settings(flags=FLAGS)
    lake, model = str(tiles / "images"), str(tiles / "model")
    summary = score.run(lake, model, str(tiles / "scores"), settings, LOCAL, where=EVALUATED)
    # The 583 are in three fragments of 256 images, which are scored whole.
    assert summary.statuses == {"ok": 768}
    found = metrics(tiles, "scores")
    _require_independent(found)
    # Ours, of docs/benchmarks.md: nothing that is only faster may move them. The arithmetic of
    # another processor chooses other patches: measured without AVX-512, and on AMD's with it, the
    # AUPRO is 0.703.
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text() if cpuinfo.exists() else "avx512f"
    is_other = "avx512f" not in processor or "AuthenticAMD" in processor
    ours = {"image_auroc": 0.840, "pixel_auroc": 0.769, "aupro": 0.703 if is_other else 0.699}
    assert found == pytest.approx(ours, abs=0.002)


def _require_independent(found: dict[str, float]) -> None:
    assert found["image_auroc"] == pytest.approx(0.832, abs=0.01)
    assert found["pixel_auroc"] == pytest.approx(0.766, abs=0.02)
    assert found["aupro"] == pytest.approx(0.697, abs=0.02)


@pytest.mark.skipif(
    not multiplies_bfloat16(torch.device("cpu")),
    reason="this processor does not multiply bfloat16: the precision chosen is that of the others",
)
def test_so_are_those_of_the_precision_that_it_chooses(tiles: Path):
    settings = load_settings(flags=CHOSEN)
    lake, model = str(tiles / "images"), str(tiles / "model-chosen")
    fit.run(lake, model, settings, LOCAL)
    score.run(lake, model, str(tiles / "scores-chosen"), settings, LOCAL, where=EVALUATED)
    _require_independent(metrics(tiles, "scores-chosen"))


@pytest.mark.ray
def test_either_runner_gives_the_same_bytes(tmp_path: Path, local_ray: None):
    """On the real hazelnut images, which are fewer."""
    source = str(ASSETS / "data" / "hazelnut")
    lake, model = str(tmp_path / "images"), str(tmp_path / "model")
    score_ = {"heatmaps": "all", "scored_at": "2026-01-01T00:00:00Z"}
    settings = load_settings(flags=CHOSEN | {"fragment_images": 16, "score": score_})
    ingest.run(source, lake, Arrangement(), settings, LOCAL)
    fit.run(lake, model, settings, LOCAL)
    results = {}
    for name in ("local", "ray"):
        out = tmp_path / f"scores-{name}"
        score.run(lake, model, str(out), settings, Execution(name, None))
        results[name] = output_files(out)
    first = results["local"]
    assert len(first) > 51
    assert all(result == first for result in results.values())


def test_random_weights_see_nothing(tiles: Path, tmp_path: Path):
    """0.49 of image AUROC: a bug that leaks the label, or broken features, would show."""
    backbone = {"name": "resnet18.tv_in1k", "weights": "untrained"}
    # 64 px: a twelfth of the work, and the same nothing.
    flags = FLAGS | {"backbone": backbone, "image": {"resize": [64, 64]}}
    settings = load_settings(flags=flags)
    lake, model, scores = (
        str(path) for path in (tiles / "images", tmp_path / "model", tmp_path / "scores")
    )
    fit.run(lake, model, settings, LOCAL)
    score.run(lake, model, scores, settings, LOCAL, where=EVALUATED)
    values = evaluate.run(lake, scores)["magnetic_tile"]
    assert 0.42 < float(values["image_auroc"] or 0) < 0.58
