"""That what functions say of arrays is checked while tests run: conftest.py of the root."""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import patchlake
from conftest import CHECKED, UNCHECKED
from patchlake.pipeline.driver.detector import Detection
from patchlake.pipeline.evaluation import roc
from patchlake.pipeline.features.layers import NamedLayers
from patchlake.pipeline.groups import calibrate
from patchlake.pipeline.images import geometry
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.lake import trained
from patchlake.pipeline.maths import projection
from patchlake.pipeline.methods.shared import contract
from patchlake.pipeline.scores import heatmap
from patchlake.pipeline.scores.verdict import Judgement
from patchlake.pipeline.stages.examined import Examined

ROOT = Path(patchlake.__file__).parent

F32, F64, I64, U8 = np.float32, np.float64, np.int64, np.uint8


# A call with an array of a false shape or type, where any is taken, and the name of the argument.
WRONG = {
    "evaluation": (lambda: roc.auroc(np.zeros((2, 1)), np.ones(2, bool)), "scores"),
    "features": (
        lambda: NamedLayers(torch.nn.Identity(), ()).forward(torch.zeros(1, 4, 2, 2)),
        "images",
    ),
    "groups": (lambda: calibrate.choose_evenly(np.zeros((2, 1), I64), 2, 1), "candidates"),
    "images": (lambda: geometry.split_inputs(np.zeros((1, 2), F32), []), "joined"),
    "index": (lambda: ExactSearch.over(np.zeros((3, 2), F64)), "bank"),
    "lake": (lambda: trained.is_known(None, None, None, None), "known"),
    "maths": (lambda: projection.projected(np.zeros((2, 3), F32), np.zeros((4, 1), F32)), "proj"),
    "methods": (lambda: contract.Scores(np.zeros(2, F32), np.zeros((3, 1, 1), F32)), "anomaly"),
    "scores": (lambda: heatmap.to_jpeg(np.zeros((1, 1, 4), U8)), "picture"),
    "stages": (
        lambda: Examined(
            Judgement(1.0), np.zeros((1, 1), F64), (1, 1), geometry.Geometry((1, 1), None)
        ),
        "anomaly_map",
    ),
    "driver": (lambda: Detection("ok", anomaly_map=np.zeros((2, 2), F64)), "anomaly_map"),
}


def test_no_package_is_left_out():
    assert {name.split(".")[2] for name in CHECKED} == set(WRONG)


@pytest.mark.parametrize("room", WRONG)
def test_a_wrong_array_fails(room):
    call, name = WRONG[room]
    with pytest.raises(TypeCheckError, match=f"parameter '{name}"):
        call()


def _modules():
    """Every module of the package, by name, and its text."""
    for path in sorted([*ROOT.glob("jobs/**/*.py"), *ROOT.glob("pipeline/**/*.py")]):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path.read_text()


def _functions(module):
    """Every function of a module, and of its classes, that is written there."""
    owners = [module, *(kind for _, kind in inspect.getmembers(module, inspect.isclass))]
    for owner in owners:
        for name, function in vars(owner).items():
            is_own = inspect.isfunction(function) and function.__module__ == module.__name__
            # Those of a dataclass are made by it.
            if is_own and not name.startswith("__"):
                yield function


def test_every_module_that_says_what_an_array_holds_is_checked():
    telling = {name for name, text in _modules() if "from jaxtyping import" in text}
    assert len(telling) > 30
    covered = tuple(f"{name}." for name in CHECKED)
    assert {name for name in telling if not f"{name}.".startswith(covered)} == set(UNCHECKED)
    for name in telling - set(UNCHECKED):
        plain = [
            f for f in _functions(importlib.import_module(name)) if not hasattr(f, "__wrapped__")
        ]
        # The hook caches what it compiles, and also what its modules import, under a name of its
        # own: a module that joins the list may have been compiled before without checks.
        assert not plain, f"{name} is not checked; is there a __pycache__ of before?"
