"""docs/analyst.md by its own steps: its table, and its queries in four engines, which agree."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.dataset as ds
import pytest

from patchlake.pipeline.driver import compact
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.storage.folder import NULL_PARTITION, escape
from patchlake.pipeline.tables import SCORES
from tests.conftest import TINY_FLAGS, CommandLine, command_line, read_scores, write_part
from tests.guide import BY_ENGINE, ENGINES, PAGE, PYTHON, QUERIES, SQL, ask, ask_duckdb, assert_same

ROOT = Path(__file__).parents[1]
# Of each product, for the quick tests: enough to promise 0.05, which takes 19 parts.
FEW = {"train": 20, "good": 6, "defects": 4}
ANOTHER_MODEL = (
    "patchlake fit images model-padim --method padim",
    "patchlake score images model-padim scores",
)
SPARK = (pytest.mark.spark, pytest.mark.slow)
BY_ANY = [pytest.param(e, marks=SPARK if e == "pyspark" else ()) for e in ENGINES]


def _say(run: CommandLine, line: str, flags: tuple[str, ...]) -> None:
    _, *arguments = shlex.split(line, comments=True)
    assert run(*arguments, *flags) == 0, line


def _steps(text: str) -> list[str]:
    """Return the commands of patchlake that stand in blocks of a shell."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("patchlake")]


@pytest.fixture(scope="module", params=["few", pytest.param("demo", marks=pytest.mark.slow)])
def plant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `nights` that the page's own steps leave: of few pictures and a tiny network, or
    of all that `make demo` draws and the default one; with the scores of two models in `two`.
    """
    root, few = tmp_path_factory.mktemp("plant"), request.param == "few"
    write_products(root / "demo" / "pictures", **(FEW if few else {}))
    subprocess.run([sys.executable, "-c", PYTHON["nights.py"]], cwd=root, check=True)
    section = PAGE[PAGE.index("## A table to try") : PAGE.index("## Opening it")]
    flags = TINY_FLAGS if few else ("--runner", "local")
    steps = _steps(section)
    assert [step.split()[1] for step in steps] == ["ingest", "fit", "score"]
    with command_line() as run, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for step in steps:
            _say(run, step, flags)
        patch.chdir(root / "nights")
        shutil.copytree("scores", "two/scores")
        for step in ANOTHER_MODEL:
            assert f"`{step}`" in PAGE.replace("\n", " ")
            _say(run, step.replace("padim scores", "padim two/scores"), flags)
    return root / "nights"


@pytest.fixture(params=["parts", "compacted", "two models"])
def table(request: pytest.FixtureRequest, plant: Path, tmp_path: Path, monkeypatch) -> str:
    """The working directory of the page, with its table, its compacted twin, or two models'."""
    if request.param == "compacted":
        compact.run(str(plant / "scores"), str(tmp_path / "scores"))
    else:
        folder = plant / "two" if request.param == "two models" else plant
        shutil.copytree(folder / "scores", tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    return request.param


def test_every_query_is_there_for_every_engine():
    assert set(BY_ENGINE) == {(name, engine) for name in SQL for engine in ENGINES}


def test_the_table_of_the_page_has_verdicts_and_regions(plant: Path):
    rows = read_scores(plant / "scores").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    for name in ("p_value", "threshold", "is_anomalous", "regions", "part_id"):
        assert None not in [row[name] for row in rows], name
    anomalous = [row for row in rows if row["is_anomalous"]]
    assert 0 < len(anomalous) < len(rows)
    assert all(row["regions"] for row in anomalous)
    for night in ("2026-11-21", "2026-11-22"):
        for group in ("brushed_plate", "woven_cloth"):
            inside = (f"dt={night}", f"g={group}")
            assert any(all(f in r["source_path"].split("/") for f in inside) for r in anomalous)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_an_answer(table: str, name: str):
    if name == "versions" and table != "two models":
        assert ask_duckdb(name) == []
    elif name == "discoveries":
        # Of few images of a tiny network there may be none: see "When it finds nothing".
        assert ask_duckdb(name) is not None
    else:
        assert ask_duckdb(name)


@pytest.mark.parametrize("engine", BY_ANY)
@pytest.mark.parametrize("name", QUERIES)
def test_the_engines_agree(
    table: str, name: str, engine: str, request: pytest.FixtureRequest
):
    if engine == "pyspark":
        request.getfixturevalue("spark")
    assert_same(ask(engine, name), ask_duckdb(name))
