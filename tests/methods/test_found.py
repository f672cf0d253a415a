"""A method is a module: what is found by its name is one, and nothing is loaded to find it."""

import importlib
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

from patchlake.pipeline.methods import build, names
from patchlake.pipeline.methods.shared.contract import Method, Updatable

ROOT = Path(__file__).parents[2]


def test_to_list_the_methods_loads_none_of_them():
    """Torch takes 3 s, and a command line that is wrong should be told so at once."""
    code = (
        "import sys; from patchlake.pipeline.methods import names; found = names();"
        "loaded = [f'patchlake.pipeline.methods.{name}' for name in found] + ['torch', 'numpy'];"
        "print(found, [name for name in loaded if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"{names()} []"


@pytest.mark.parametrize("name", names())
def test_a_module_of_the_package_exports_a_method(name: str):
    module = importlib.import_module(f"patchlake.pipeline.methods.{name}")
    method = build(name, {})
    assert type(method) is module.METHOD
    assert isinstance(method, Method)
    # Without it, mypy does not hold the class to the contract.
    declared = type[Updatable] if isinstance(method, Updatable) else type[Method]
    assert module.__annotations__["METHOD"] == declared


@pytest.mark.parametrize("name", names())
def test_a_method_is_a_frozen_dataclass_of_settings(name: str):
    method = build(name, {})
    assert is_dataclass(method)
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, None)


@pytest.mark.parametrize("name", names())
def test_the_documentation_has_a_row_for_each_method(name: str):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    assert any(line.startswith("|") and f"`{name}`" in line for line in lines)
