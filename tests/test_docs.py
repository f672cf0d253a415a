"""README stays true: its columns, its settings, its commands and its queries."""

import re
import shutil
from pathlib import Path

import duckdb
import pytest

from jobs.cli import app
from pipeline.config import known_names, load_settings
from pipeline.methods import build, names, options_of
from pipeline.presets import PRESETS
from pipeline.tables import IMAGES, SCORES, markdown

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("schema", [IMAGES, SCORES], ids=["images", "scores"])
def test_readme_lists_the_columns_of_the_tables(schema):
    assert markdown(schema) in README, "run: python -m pipeline.tables"


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
    verbs = [command.callback.__name__ for command in app.registered_commands]
    assert verbs == ["ingest", "fit", "withdraw", "score", "evaluate", "compact", "status", "demo"]
    for verb in verbs[:-1]:
        assert f"patchlake {verb}" in README


@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", README, re.DOTALL))
def test_the_queries_of_the_readme_run(
    query: str, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(scores, tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    rows = duckdb.sql(query.replace("'tile'", "'woven_cloth'")).fetchall()
    assert rows
