"""timm comes without torch's compiler, which can be used afterwards; and comes in any case."""

import subprocess
import sys

import pytest


def _run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


WITHOUT = """
import sys
from patchlake.pipeline.features.importing import import_timm
timm = import_timm()
assert "timm.models.resnet" in sys.modules
print("torch._dynamo" in sys.modules, hasattr(sys.modules["torch"], "compile"))
import torch
double = torch.compile(lambda x: 2 * x, backend="eager")
print(double(torch.ones(1)).item(), torch._dynamo.__file__ is not None)
"""


@pytest.mark.slow
def test_the_compiler_is_not_imported_and_works_afterwards():
    assert _run(WITHOUT).split() == ["False", "True", "2.0", "True"]


LOADED = """
import sys
from patchlake.pipeline.config import BackboneSettings
from patchlake.pipeline.features.backbone import load_backbone
load_backbone(BackboneSettings(layers=(2, 3)))
print("torch._dynamo" in sys.modules)
"""


def test_the_default_backbone_is_loaded_without_the_compiler():
    assert _run(LOADED).split() == ["False"]


IN_ANY_CASE = """
import sys
from patchlake.pipeline.features import importing
{}
timm = importing.import_timm()
print(timm.create_model("resnet10t", num_classes=0).num_features, "torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        # As a later timm may want of the stand-in what it lacks.
        "importing._as_it_is = None",
        "import torch._dynamo",
    ],
)
def test_it_comes_where_the_stand_in_does_not_do(change: str):
    assert _run(IN_ANY_CASE.format(change)).split() == ["512", "True"]
