"""The snippets of docs/analyst.md, and how a test asks by them in each engine.

A snippet begins with its name, and where it is not DuckDB's, the engine. A query leaves its rows in
`answer`, or DuckDB gives them; the snippet `open` goes before it.
"""

import math
import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

Row = dict[str, Any]

PAGE = (Path(__file__).parents[1] / "docs" / "analyst.md").read_text()
SQL = dict(re.findall(r"```sql\n-- (\w+)\n(.*?)```", PAGE, re.DOTALL))
PYTHON = dict(re.findall(r"```python\n# ([\w.]+)\n(.*?)```", PAGE, re.DOTALL))
BY_ENGINE = {
    (name, engine): code
    for name, engine, code in re.findall(r"```python\n# (\w+), (\w+)\n(.*?)```", PAGE, re.DOTALL)
}
ENGINES = ("polars", "pandas", "pyspark")
QUERIES = tuple(name for name in SQL if not name.startswith("open"))


def ask_duckdb(name: str, opening: str = SQL["open"]) -> list[Row]:
    """Return the rows of a query, of the folder `scores` of the working directory."""
    with duckdb.connect() as connection:
        connection.execute(opening)
        return connection.sql(SQL[name]).to_arrow_table().to_pylist()


def opened(engine: str) -> dict[str, Any]:
    """Return the names that there are once another engine has opened the table."""
    opening = BY_ENGINE["open", engine]
    if engine == "pyspark":
        # Java keeps the working directory in which it was started.
        assert opening.count('parquet("scores")') == 1
        opening = opening.replace('parquet("scores")', f'parquet("{Path("scores").resolve()}")')
    scope: dict[str, Any] = {}
    exec(opening, scope)
    return scope


def ask(engine: str, name: str) -> list[Row]:
    """Return the rows of a query in another engine, with None for what is null."""
    scope = opened(engine)
    exec(BY_ENGINE[name, engine], scope)
    answer = scope["answer"]
    if engine == "polars":
        found = answer.to_dicts()
    elif engine == "pandas":
        found = answer.to_dict("records")
    else:
        found = [row.asDict(recursive=True) for row in answer.collect()]
    return [{column: _plain(value) for column, value in row.items()} for row in found]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def assert_same(found: list[Row], expected: list[Row]) -> None:
    """Check that rows are the same, in order: floats to 1e-5 (or 1e-6), all else exactly."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        for column, value in wanted.items():
            if isinstance(value, float) and row[column] is not None:
                assert math.isclose(row[column], value, rel_tol=1e-5, abs_tol=1e-6), (column, row)
            else:
                assert row[column] == value, (column, row, wanted)
