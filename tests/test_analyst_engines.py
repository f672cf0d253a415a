"""docs/analyst.md by its own steps: its table, and its queries in four engines, which agree."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from patchlake.pipeline.driver import compact
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.storage.folder import NULL_PARTITION, escape
from patchlake.pipeline.tables import SCORES
from tests.conftest import TINY_FLAGS, CommandLine, Store, command_line, read_scores, write_part
from tests.guide import (
    BY_ENGINE,
    ENGINES,
    PAGE,
    PYTHON,
    QUERIES,
    SQL,
    ask,
    ask_duckdb,
    assert_same,
    opened,
)

ROOT = Path(__file__).parents[1]
# Of each product, for the quick tests: enough to promise 0.05, which takes 19 parts.
FEW = {"train": 20, "good": 6, "defects": 4}
ANOTHER_MODEL = (
    "patchlake fit images model-padim --method padim",
    "patchlake score images model-padim scores",
)
# Of letters beyond ASCII, which it else takes for one letter a byte.
SPARK_DECODES = "decode(encode(line, 'ISO-8859-1'), 'UTF-8')"
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
def is_few(request: pytest.FixtureRequest) -> bool:
    """Few pictures and a tiny network; else all that `make demo` draws, and the default one."""
    return request.param == "few"


def _flags(*, few: bool) -> tuple[str, ...]:
    night = "score.scored_at=2026-11-22T05:00:00Z"
    return (*(TINY_FLAGS if few else ("--runner", "local")), "--set", night)


def _without_patchcore(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags for another method, an hour later."""
    kept = [flag.replace("T05:", "T06:") for flag in flags if "coreset" not in flag]
    return tuple(f for n, f in enumerate(kept) if f != "--set" or "=" in kept[n + 1])


@pytest.fixture(scope="module")
def plant(is_few: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `nights` that the page's own steps leave; in `two`, with scores of two models."""
    root = tmp_path_factory.mktemp("plant")
    write_products(root / "demo" / "pictures", **(FEW if is_few else {}))
    subprocess.run([sys.executable, "-c", PYTHON["nights.py"]], cwd=root, check=True)
    section = PAGE[PAGE.index("## A table to try") : PAGE.index("## Opening it")]
    flags = _flags(few=is_few)
    steps = _steps(section)
    assert [step.split()[1] for step in steps] == ["ingest", "fit", "score"]
    with command_line() as run, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for step in steps:
            _say(run, step, flags)
        patch.chdir(root / "nights")
        shutil.copytree("scores", "two/scores")
        compact.run("scores", "compacted/scores")
        for step in ANOTHER_MODEL:
            assert f"`{step}`" in PAGE.replace("\n", " ")
            _say(run, step.replace("padim scores", "padim two/scores"), _without_patchcore(flags))
    return root / "nights"


@pytest.fixture(params=["parts", "compacted", "two"])
def table(request: pytest.FixtureRequest, plant: Path, monkeypatch) -> str:
    """The working directory of the page, with its table, its compacted twin, or two models'."""
    monkeypatch.chdir(plant / ("." if request.param == "parts" else request.param))
    return request.param


def test_every_query_is_there_for_every_engine():
    assert set(BY_ENGINE) == {(name, engine) for name in ("open", *QUERIES) for engine in ENGINES}


def test_the_table_of_the_page_has_verdicts_and_regions(plant: Path, is_few: bool):
    rows = read_scores(plant / "scores").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    for name in ("p_value", "threshold", "is_anomalous", "regions", "part_id"):
        assert None not in [row[name] for row in rows], name
    anomalous = [row for row in rows if row["is_anomalous"]]
    assert 0 < len(anomalous) < len(rows)
    assert all(row["regions"] for row in anomalous)
    # A tiny network, which was never trained, does not find all kinds of defects.
    products = ("woven_cloth",) if is_few else ("brushed_plate", "woven_cloth")
    for night in ("2026-11-21", "2026-11-22"):
        for product in products:
            inside = {f"dt={night}", f"g={product}"}
            assert any(inside < set(row["source_path"].split("/")) for row in anomalous)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_has_an_answer(table: str, name: str):
    if name == "versions" and table != "two":
        assert ask_duckdb(name) == []
    elif name == "discoveries":
        # Of few images of a tiny network there may be none: see "When it finds nothing".
        assert ask_duckdb(name) is not None
    else:
        assert ask_duckdb(name)


@pytest.mark.parametrize("engine", ["polars", "pandas"])
@pytest.mark.parametrize("name", QUERIES)
def test_the_engines_agree(table: str, name: str, engine: str):
    assert_same(ask(engine, name), ask_duckdb(name))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("name", QUERIES)
def test_spark_agrees(table: str, name: str, spark: None):
    assert_same(ask("pyspark", name), ask_duckdb(name))


@pytest.fixture(scope="module")
def readme(plant: Path, tmp_path_factory: pytest.TempPathFactory, is_few: bool) -> Path:
    """The folder that the README's steps leave, of the one product that it names."""
    root = tmp_path_factory.mktemp("readme")
    text = (ROOT / "README.md").read_text()
    instead = "begin with `demo/pictures/woven_cloth`, which `make demo` leaves, in place of"
    assert f"{instead} `photos/tile`" in text
    section = text[text.index("## From photographs") : text.index("## As a library")]
    steps = _steps(section)
    assert [s.split()[1] for s in steps] == [
        "ingest",
        "fit",
        "score",
        "score",
        "status",
        "evaluate",
        "report",
        "worst",
        "review",
        "fit",
    ]
    # What comes then waits for a person; tests/jobs/test_review.py and test_reviews.py have it.
    steps = steps[:-2]
    with command_line() as run, pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "demo").symlink_to(plant.parent / "demo")
        for step in steps:
            is_job = step.split()[1] in ("ingest", "fit", "score")
            flags = _flags(few=is_few) if is_job else ()
            _say(run, step.replace("photos/tile", "demo/pictures/woven_cloth"), flags)
    return root


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_queries_of_other_pages_have_answers_there(readme: Path, page: str, monkeypatch):
    monkeypatch.chdir(readme)
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    answers = [duckdb.sql(query).to_arrow_table().to_pylist() for query in queries]
    worst = answers[0]
    assert len(worst) == 10
    assert sorted((row["image_score"] for row in worst), reverse=True) == [
        row["image_score"] for row in worst
    ]
    anomalous = [row for row in worst if row.get("is_anomalous", row["picture"] is not None)]
    assert anomalous
    assert all(Path(row["picture"]).is_file() for row in anomalous)
    assert all(answers)


@pytest.mark.parametrize("name", QUERIES)
def test_the_queries_run_on_a_table_without_keys(readme: Path, name: str, monkeypatch):
    """It was scored on the night that the page names; its images have no `part_id`."""
    monkeypatch.chdir(readme)
    found = ask_duckdb(name, SQL["open"] + SQL["open_without_keys"])
    assert bool(found) == (name not in ("versions", "parts", "shots", "discoveries")) or (
        name == "discoveries"
    )


def test_the_table_for_athena_has_our_columns():
    text = re.search(r"CREATE EXTERNAL TABLE scores \((.*?)\)\nPARTITIONED", PAGE, re.DOTALL)[1]
    plain = re.sub(r"array<float>|array<struct<[^>]*>>", "", text, flags=re.DOTALL).replace("`", "")
    assert [column.split()[0] for column in plain.split(",")] == SCORES.names
    told = re.search(r"struct<(.*?)>", text, re.DOTALL)[1]
    boxes = SCORES.field("regions").type.value_type
    assert [name.strip().split(":")[0] for name in told.split(",")] == [
        f.name for f in boxes.fields
    ]


@pytest.mark.slow
@pytest.mark.s3
def test_every_engine_reads_the_table_in_s3(store: Store, tmp_path: Path):
    for night in ("21", "22"):
        path = write_part(tmp_path, f"dt=2026-11-{night}/line=L1", image_score=[1.0, 2.0])
        store.put(f"scores/{path.relative_to(tmp_path)}", path.read_bytes())
    store.put("scores/_runs/one/run.json", b"{}")
    scope: dict[str, object] = {}
    exec(PYTHON["s3"].replace("s3://bucket/", store.uri()), scope)
    assert scope["by_duckdb"] == [(4,)]
    assert scope["by_polars"] == scope["by_pandas"] == 4


# What folders may be called: signs that are escaped, letters beyond ASCII, numbers and nulls.
LINES = (
    *("a b/c=d%", "Größe", "日本", "a:b*?", "x+y", "~", "[1]", "a\\b\"'", "é"),
    *("1", "01", "1e5", "null", "true", "2026-11-22", None),
)


# Of scores from before versions were no numbers; PySpark does not come to an end with 123e45678901.
@pytest.fixture(params=["000123456789", "123456789012", "3f0c5e7a1b2c"])
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> str:
    """A table of a version that looks like a number, and of odd lines; with folders of records."""
    for number, line in enumerate(LINES):
        folder = f"dt=2026-11-22/line={escape(line) if line else NULL_PARTITION}/g=tile"
        write_part(tmp_path / "scores", folder, image_id=[str(number)])
    (tmp_path / "scores" / "version=abc").rename(tmp_path / "scores" / f"version={request.param}")
    for name in ("_runs/r/run.json", "_cuts/d.arrow", "_cuts/d.parquet", "_heatmaps/k/0.jpg"):
        path = tmp_path / "scores" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no table")
    monkeypatch.chdir(tmp_path)
    return request.param


def _keys_by(engine: str) -> list[tuple[object, ...]]:
    """Return version, dt, line and image_id of all rows, as the page opens the table."""
    names = ["version", "dt", "line", "image_id"]
    if engine == "duckdb":
        with duckdb.connect() as connection:
            connection.execute(SQL["open"])
            return connection.sql(f"SELECT {', '.join(names)} FROM scores").fetchall()
    scope = opened(engine)
    if engine == "polars":
        return scope["scores"].select(names).collect().rows()
    if engine == "pandas":
        return [tuple(row.values()) for row in scope["scores"].to_table(columns=names).to_pylist()]
    assert f"`{SPARK_DECODES}`" in PAGE
    line = f"{SPARK_DECODES} AS line"
    rows = scope["spark"].sql(f"SELECT version, dt, {line}, image_id FROM scores").collect()
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("engine", ["duckdb", *BY_ANY])
def test_every_engine_reads_the_same_keys(odd: str, engine: str, request: pytest.FixtureRequest):
    if engine == "pyspark":
        request.getfixturevalue("spark")
    rows = sorted(_keys_by(engine), key=lambda row: int(row[3]))
    expected = [(odd, "2026-11-22", line, str(n)) for n, line in enumerate(LINES)]
    assert rows == expected
