"""README and help stay true: columns, settings, commands and queries."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from patchlake.jobs.cli import VERBS
from patchlake.pipeline.config import known_names, load_settings
from patchlake.pipeline.methods import build, names, options_of
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.tables import IMAGES, SCORES, markdown

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("schema", [IMAGES, SCORES], ids=["images", "scores"])
def test_readme_lists_the_columns_of_the_tables(schema):
    assert markdown(schema) in README, "run: python -m patchlake.pipeline.tables"


def test_readme_lists_every_setting():
    ours = [name for name in known_names() if not name.startswith("columns.")]
    ours += [f"method.{option}" for name in names() for option in options_of(build(name, {}))]
    unlisted = [name for name in ours if f"`{name}`" not in README and name != "preset"]
    assert not unlisted


@pytest.mark.parametrize("name", [*names(), *PRESETS])
def test_readme_names_every_method_and_preset(name):
    assert f"`{name}`" in README


def test_every_preset_is_settings_of_a_method():
    for name in PRESETS:
        chosen = load_settings(flags={"preset": name}).method
        assert options_of(build(chosen.name, chosen.options())).items() >= chosen.options().items()


def test_readme_shows_every_verb():
    for verb in VERBS:
        assert verb == "demo" or f"patchlake {verb}" in README


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_of_a_verb_what_the_verb_says_of_itself(verb: str):
    documented = getattr(importlib.import_module(f"patchlake.jobs.{verb}"), verb).__doc__
    assert " ".join(documented.split()).startswith(VERBS[verb])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["statsu"]])
def test_what_runs_nothing_loads_nothing(arguments: list[str]):
    """Torch takes 3 s, and pyarrow 0.3."""
    run = "from patchlake.jobs import cli\ntry: cli.app()\nfinally: print({})"
    code = f"import sys; sys.argv[1:] = {{}}; {run}"
    loaded = "[m for m in ('torch', 'pyarrow', 'ray', 'scipy') if m in sys.modules]"
    command = [sys.executable, "-c", code.format(arguments, loaded)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert done.returncode == (2 if arguments == ["statsu"] else 0)


@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", README, re.DOTALL))
def test_the_queries_of_the_readme_run(
    query: str, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(scores, tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    rows = duckdb.sql(query.replace("'tile'", "'woven_cloth'")).fetchall()
    assert rows
