"""`demo` as `make demo` runs it: without a network, with weights that are installed."""

import re
from pathlib import Path

import pytest
from PIL import Image

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import evaluate


@pytest.mark.slow
def test_it_finds_the_defects_that_it_draws(tmp_path: Path, patchlake, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    demo = tmp_path / "demo"
    result = patchlake("demo", demo)
    assert result.code == 0, result.err
    found = evaluate.run(str(demo / "images"), str(demo / "scores"), None, load_settings())
    assert set(found) == {"brushed_plate", "woven_cloth"}
    for metrics in found.values():
        # Of the plate it is 0.917 to 0.961, by seed, size of the bank and precision.
        assert metrics["image_auroc"] > 0.9
        assert f"{metrics['image_auroc']:.3f}" in result.out
    named = re.findall(rf"{demo}\S+\.jpg", result.out)
    assert len(named) == 10
    for name in named:
        with Image.open(name) as picture:
            assert picture.size == (256, 256)
    # The pictures, the models and the scores are there already.
    again = patchlake("demo", demo)
    assert again.code == 0, again.err
    assert "all 232 images are done" in again.err
