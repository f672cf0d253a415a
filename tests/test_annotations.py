"""That what functions say of arrays is checked while tests run: conftest.py of the root."""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import patchlake
from conftest import CHECKED
from patchlake.pipeline.driver import withdraw
from patchlake.pipeline.evaluation import roc
from patchlake.pipeline.features.layers import NamedLayers
from patchlake.pipeline.groups import calibrate
from patchlake.pipeline.images import geometry
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.lake import trained
from patchlake.pipeline.maths import projection
from patchlake.pipeline.methods import contract
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.scores import heatmap
from patchlake.pipeline.stages.publish import Publish

ROOT = Path(patchlake.__file__).parent

F32, F64, I64, U8 = np.float32, np.float64, np.int64, np.uint8


def _blank(kind: type) -> object:
    return object.__new__(kind)


# A call with an array of a false shape or type, where any is taken, and the name of the argument.
WRONG = {
    "evaluation": (lambda: roc.auroc(np.zeros((2, 1)), np.ones(2, bool)), "scores"),
    "features": (
        lambda: NamedLayers(torch.nn.Identity(), ()).forward(torch.zeros(1, 4, 2, 2)),
        "images",
    ),
    "groups": (lambda: calibrate.spread(np.zeros((2, 1), I64), 2, 1), "candidates"),
    "images": (lambda: geometry.split_inputs(np.zeros((1, 2), F32), []), "joined"),
    "index": (lambda: ExactSearch.over(np.zeros((3, 2), F64)), "bank"),
    "lake": (lambda: trained.is_known(None, None, None, None), "known"),
    "maths": (lambda: projection.projected(np.zeros((2, 3), F32), np.zeros((4, 1), F32)), "proj"),
    "methods": (lambda: contract.Scores(np.zeros(2, F32), np.zeros((3, 1, 1), F32)), "anomaly"),
    "scores": (lambda: heatmap.to_png(np.zeros((1, 1, 4), U8)), "picture"),
    "stages": (
        lambda: _blank(Publish)._write_heatmap(_blank(Fragment), (), np.zeros((1, 1), F64)),
        "anomaly_map",
    ),
    "driver": (lambda: withdraw._Withdrawn(_blank(withdraw.Standing), np.zeros(2)), "numbers"),
}


def test_no_package_is_left_out():
    assert {name.rpartition(".")[2] for name in CHECKED} == set(WRONG)


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


def test_every_module_that_says_what_an_array_holds_is_checked():
    telling = {name for name, text in _modules() if "from jaxtyping import" in text}
    assert len(telling) > 30
    assert not {name for name in telling if not name.startswith(tuple(CHECKED))}
    # One from before the hook may lie in __pycache__ under the name that is the hook's.
    for name in telling:
        module = importlib.import_module(name)
        functions = inspect.getmembers(module, inspect.isfunction)
        own = {n: f for n, f in functions if f.__module__ == name}
        assert all(hasattr(f, "__wrapped__") for f in own.values()), f"{name} is not checked"
