"""A few cases of the fuzz target, in this process: of damaged models none ends otherwise."""

import random
from pathlib import Path

import pytest

from tests.fuzz import model


def test_a_damaged_model_is_named_or_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model.fit_models(tmp_path, ["patchcore"])
    monkeypatch.setenv(model.MODELS, str(tmp_path / "models"))
    for number in range(8):
        model.case(random.Random(f"0/{number}"))
