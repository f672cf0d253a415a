"""`demo` as `make demo` runs it: without a network, with weights that are installed."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate, fit, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.features.precision import multiplies_bfloat16


@pytest.mark.slow
def test_it_finds_the_defects_that_it_draws(tmp_path: Path, patchlake, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    demo = tmp_path / "demo"
    result = patchlake("demo", demo)
    assert result.code == 0, result.err
    found = evaluate.run(str(demo / "images"), str(demo / "scores"), None, load_settings())
    assert set(found) == {"brushed_plate", "woven_cloth"}
    for metrics in found.values():
        # Of the plate it is 0.917 to 0.961, by seed, size of the bank and precision: in bfloat16
        # 0.942 with the demo's bank. In float32 the bound is what it was before there was a choice.
        assert metrics["image_auroc"] > 0.93
        assert f"{metrics['image_auroc']:.3f}" in result.out
    # Which is its own where the processor does not multiply bfloat16.
    is_own = not multiplies_bfloat16(torch.device("cpu"))
    for metrics in (found if is_own else _in_float32(demo, tmp_path)).values():
        assert metrics["image_auroc"] > 0.95
    assert result.out.splitlines()[-1] == str(demo / "report.html")
    assert (demo / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
    named = re.findall(rf"{demo}\S+\.jpg", result.out)
    assert len(named) == 10
    for name in named:
        with Image.open(name) as picture:
            # The photo, and its strip of one to four lines.
            assert picture.width == 256
            assert picture.height - 256 in (20, 40, 60, 80)
    # The pictures, the models and the scores are there already.
    again = patchlake("demo", demo)
    assert again.code == 0, again.err
    assert "all 232 images are done" in again.err


def _in_float32(demo: Path, work: Path) -> dict[str, evaluate.Metrics]:
    """Return the metrics of the demo's images by the demo's settings, but for the precision."""
    settings = load_settings(
        assignments=["method.coreset_fraction=0.05", "backbone.precision=float32"]
    )
    lake, model, scores = str(demo / "images"), str(work / "exact"), str(work / "exact-scores")
    fit.run(lake, model, settings, Execution())
    score.run(lake, model, scores, settings, Execution())
    return evaluate.run(lake, scores, None, settings)
