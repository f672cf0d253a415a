"""README, docs/ and help stay true: columns, settings, commands, queries, names and links."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
import yaml

from patchlake.jobs.cli import VERBS
from patchlake.pipeline.config import Settings, known_names, load_settings
from patchlake.pipeline.driver import score
from patchlake.pipeline.methods import build, names, options_of
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.tables import DRIFT, IMAGES, PARTS, REVIEWS, SCORES, SUSPECTS, markdown
from tests.conftest import LOCAL, TINY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
# As somebody reads them in the repository; mkdocs makes the same a site, and checks its links.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted(DOCS.rglob("*.md")),
    )
}


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    level, text = heading.split(" ", 1)
    found = re.search(
        rf"^{level} {re.escape(text)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)",
        PAGES[page],
        re.MULTILINE | re.DOTALL,
    )
    assert found, f"{page} has no heading '{heading}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a page's tables."""
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_readme_is_short():
    assert README.count("\n") < 200


@pytest.mark.parametrize(
    "schema",
    [IMAGES, SCORES, PARTS, SUSPECTS, REVIEWS, DRIFT],
    ids=["images", "scores", "parts", "suspects", "reviews", "drift"],
)
def test_the_columns_of_the_tables_are_listed(schema):
    told = "run: python -m patchlake.pipeline.tables"
    assert markdown(schema) in PAGES["docs/tables.md"], told


def test_every_setting_is_listed_with_its_default():
    known = {name: _default(name) for name in known_names()}
    listed = {row[0].strip("`"): row[1] for row in rows(PAGES["docs/settings.md"])}
    assert listed.keys() == known.keys()
    assert _wrong(listed, known) == {}


@pytest.mark.parametrize("method", names())
def test_every_setting_of_a_method_is_listed_with_its_default(method: str):
    known = {f"method.{name}": value for name, value in options_of(build(method, {})).items()}
    text = section("docs/methods.md", f"### {method}")
    listed = {row[0].strip("`"): row[1] for row in rows(text)}
    assert listed.keys() == known.keys()
    assert _wrong(listed, known) == {}


def _default(name: str) -> object:
    value: Any = Settings()
    for part in name.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def _wrong(listed: dict[str, str], known: dict[str, object]) -> dict[str, str]:
    """Return defaults that are told otherwise than they are. Some are told in words."""
    values = {name: yaml.safe_load(told) for name, told in listed.items() if "`" not in told}
    return {
        name: f"{value!r} is listed, {known[name]!r} is the default"
        for name, value in values.items()
        if value != known[name] and (" " not in str(value) or isinstance(value, list))
    }


@pytest.mark.parametrize("name", [*names(), *PRESETS])
def test_every_method_and_preset_is_named(name):
    assert f"`{name}`" in PAGES["docs/methods.md"]


def test_every_preset_is_settings_of_a_method():
    for name in PRESETS:
        chosen = load_settings(flags={"preset": name}).method
        assert options_of(build(chosen.name, chosen.options())).items() >= chosen.options().items()


def options_of_verb(verb: str) -> set[str]:
    one = typer.Typer(add_completion=False)
    one.command(verb)(getattr(importlib.import_module(f"patchlake.jobs.{verb}"), verb))
    parameters = typer.main.get_command(one).params
    return {name for p in parameters if p.param_type_name == "option" for name in p.opts}


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_every_verb_is_listed_and_no_other(verb: str):
    text = section("docs/verbs.md", f"## {verb}")
    assert f"patchlake {verb} " in text
    shared = {row[0].strip("`"): row[1] for row in rows(section("docs/verbs.md", SHARED))}
    shared["--address"] = shared["--runner"]
    every, most = "all but `demo`", verb != "demo"
    own = {row[0].strip("`") for row in rows(text)}
    common = {
        flag for flag, of in shared.items() if (of == every and most) or f"`{verb}`" in _named(of)
    }
    assert own | common == options_of_verb(verb)


SHARED = "## Flags of several verbs"


def _named(of: str) -> list[str]:
    return [] if of.startswith("all but") else re.findall(r"`\w+`", of)


def commands() -> list[tuple[str, str]]:
    """Return the commands of patchlake in the shell blocks of all pages."""
    blocks = [(p, b) for p in PAGES for b in re.findall(r"```sh\n(.*?)```", PAGES[p], re.DOTALL)]
    lines = [(page, line) for page, b in blocks for line in b.replace("\\\n", " ").splitlines()]
    return [(page, line) for page, line in lines if line.startswith("patchlake ")]


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_of_the_pages_have_verbs_and_flags_that_there_are(page: str, command: str):
    _, verb, *words = shlex.split(command, comments=True)
    assert verb in VERBS
    flags = {word for word in words if word.startswith("--")}
    assert flags <= options_of_verb(verb)


def test_readme_goes_the_whole_way():
    shown = {command.split()[1] for page, command in commands() if page == "README.md"}
    first = {"ingest", "fit", "score", "status", "evaluate"}
    assert shown == first | {"report", "worst", "review"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_of_a_verb_what_the_verb_says_of_itself(verb: str):
    documented = getattr(importlib.import_module(f"patchlake.jobs.{verb}"), verb).__doc__
    assert " ".join(documented.split()).startswith(VERBS[verb])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["statsu"], ["score", "--bogus"]])
def test_what_runs_nothing_loads_nothing(arguments: list[str]):
    """Torch takes 3 s, and pyarrow 0.3."""
    run = "from patchlake.jobs import cli\ntry: cli.app()\nfinally: print({})"
    code = f"import sys; sys.argv[1:] = {{}}; {run}"
    loaded = "[m for m in ('torch', 'pyarrow', 'ray', 'scipy') if m in sys.modules]"
    command = [sys.executable, "-c", code.format(arguments, loaded)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert done.returncode == (0 if arguments[0].startswith("--") else 2)


QUERIES = {
    f"{page}-{number}": query
    for page in ("README.md", "docs/getting-started.md")
    for number, query in enumerate(re.findall(r"```sql\n(.*?)```", PAGES[page], re.DOTALL))
}


@pytest.mark.parametrize("name", QUERIES)
def test_the_queries_run(name: str, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(scores, tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    assert duckdb.sql(QUERIES[name].replace("'tile'", "'woven_cloth'")).fetchall()


def test_the_worst_are_of_the_last_scores_only(
    images: Path,
    model: Path,
    scores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(scores, tmp_path / "scores")
    later = {"scored_at": "2026-02-01T00:00:00Z", "heatmaps": "none"}
    settings = load_settings(flags=TINY | {"score": later})
    score.run(str(images), str(model), str(tmp_path / "scores"), settings, LOCAL)
    monkeypatch.chdir(tmp_path)
    assert len(list(Path("scores").glob("version=*"))) == 2
    found = duckdb.sql(QUERIES["README.md-0"].replace("'tile'", "'woven_cloth'")).fetchall()
    # Of the first version there would be pictures.
    assert [picture for *_, picture in found] == [None] * 10


def links() -> list[tuple[str, str]]:
    """Return the links of all pages that lead to other files of ours, or to headings."""
    # These two are made of files of the repository's root, by docs/hooks.py.
    made = ("changelog.md", "contributing.md")
    text = {page: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for page, text in PAGES.items()}
    found = [(p, link) for p in text for link in re.findall(r"\]\(([^)\s]+)\)", text[p])]
    return [(p, link) for p, link in found if ":" not in link and link not in made]


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_somewhere(page: str, link: str):
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    assert target.resolve().is_file()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """Return the anchor of a heading, by which GitHub and mkdocs know it alike."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def named(form: str) -> list[tuple[str, str]]:
    """Return what stands in backticks and has a form, by the page it is on."""
    return sorted({(p, name) for p in PAGES for name in re.findall(f"`({form})`", PAGES[p])})


@pytest.mark.parametrize(("page", "path"), named(r"[\w/]+\.py"))
def test_modules_that_are_named_are_there(page: str, path: str):
    places = [ROOT, ROOT / "pipeline", ROOT / "tests"]
    assert any((place / path).is_file() for place in places)


ROOMS = sorted(path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py"))


@pytest.mark.parametrize(("page", "name"), named(rf"(?:{'|'.join(ROOMS)})\.(?!py`)[\w.]+"))
def test_functions_that_are_named_are_there(page: str, name: str):
    if name in (*known_names(), "cluster.yaml", "images.parquet"):
        return
    found: Any = importlib.import_module(f"patchlake.pipeline.{'.'.join(name.split('.')[:2])}")
    for part in name.split(".")[2:]:
        found = getattr(found, part)


@pytest.mark.parametrize("room", ROOMS)
def test_the_tree_names_every_module_of_a_room(room: str):
    (told,) = (
        r for r in rows(section("docs/architecture.md", "## The tree")) if r[0] == f"`{room}/`"
    )
    modules = {path.stem for path in (ROOT / "pipeline" / room).rglob("*.py")} - {"__init__"}
    told_modules = set(re.findall(r"`(\w+)`", told[2]))
    assert told_modules == modules
