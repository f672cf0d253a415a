"""What a score says of its models before it begins."""

import logging
from pathlib import Path

import pytest

from patchlake.jobs.console import log
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.model_store.models import write_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL
from tests.jobs.conftest import WHERE, FittedBy
from tests.jobs.test_methods import settings_of


class Told(logging.Handler):
    """Log lines that tell of a search's cost, each with the parts that were written by then."""

    def __init__(self, scores: Path) -> None:
        super().__init__()
        self.scores = scores
        self.lines: list[str] = []
        self.parts: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "GFLOP" in record.getMessage():
            self.lines.append(record.getMessage())
            self.parts.append(len(list(self.scores.rglob("*.parquet"))))


def costs_told(
    images: Path, model: Path, scores: Path, settings: Settings, where: str | None = None
) -> Told:
    told, level = Told(scores), log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        score.run(str(images), str(model), str(scores), settings, LOCAL, where=where)
    finally:
        log.removeHandler(told)
        log.setLevel(level)
    assert list(scores.rglob("*.parquet"))
    return told


def test_the_cost_of_a_search_among_pixels_is_told_before_it(images: Path, tmp_path: Path):
    small = {"image": {"resize": [32, 32]}, "score": {"heatmaps": "none"}}
    settings, model, scores = settings_of("spade", **small), tmp_path / "model", tmp_path / "scores"
    manifest = fit.run(str(images), str(model), settings, LOCAL)
    # The layers have 8, 4 and 2 pixels a side, and 64, 128 and 256 channels; each pixel is compared
    # with those of 5 images: 2 * 5 * (64^2 * 64 + 16^2 * 128 + 4^2 * 256) operations.
    factor, groups = 1e6, {}
    for group, record in manifest.groups.items():
        cost = record.facts["gflop_per_image"]
        assert cost == pytest.approx(0.00299008)
        # So little is told as 0: of larger images it is as much as this.
        facts = record.facts | {"gflop_per_image": factor * cost}
        groups[group] = record.model_copy(update={"facts": facts})
    write_manifest(Folder(str(model)), manifest.model_copy(update={"groups": groups}))

    told = costs_told(images, model, scores, settings)

    assert [line.partition(" (")[0] for line in told.lines] == [
        f"spade on group '{group}': 2990 GFLOP of search an image, 65.78 TFLOP for 22 images"
        for group in ("brushed_plate", "woven_cloth")
    ]
    assert told.parts == [0, 0]
    # Where nothing is left to be done, there is nothing to tell.
    assert costs_told(images, model, scores, settings).lines == []


def test_of_a_cheap_search_no_cost_is_told(images: Path, fitted_by: FittedBy, tmp_path: Path):
    model, settings = fitted_by("patchcore"), settings_of("patchcore")
    assert costs_told(images, model, tmp_path, settings, WHERE).lines == []
