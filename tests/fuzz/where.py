"""`--where` texts: an answer, or one line of a ConfigError."""

import random

import pyarrow as pa

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.where.arrow import rows_kept
from patchlake.pipeline.where.condition import parse_where
from tests.fuzz.harness import main

ROWS = pa.table(
    {
        "i": pa.array([1, None, -3], pa.int16()),
        "f": [1.5, float("nan"), None],
        "s": ["a", None, "x%"],
        "select": [True, False, None],
        "m": pa.array(["a", None, "b"]).dictionary_encode(),
    }
)
KEYS = {"dt": "2026-11-20", "hour": "9", "group": "tile", "path": "a"}
_WORDS = [
    "i",
    "f",
    "s",
    "m",
    '"select"',
    "dt",
    "hour",
    "group",
    "nope",
    '"Dt"',
    "1",
    "-1",
    "1e9",
    "9.5",
    "'a'",
    "'%'",
    "''",
    "NULL",
    "TRUE",
    "DATE",
    "'2026-01-01'",
    "AND",
    "OR",
    "NOT",
    "IN",
    "BETWEEN",
    "LIKE",
    "ILIKE",
    "ESCAPE",
    "IS",
    "CAST(",
    "AS",
    "INT",
    "VARCHAR",
    "::",
    "(",
    ")",
    "(",
    ")",
    ",",
    "=",
    "<>",
    "<=",
    "<",
    "--",
    "/*",
    ";",
    ".",
    "[",
    "]",
    "+",
    "*",
    "$$",
    ":x",
    "?",
    "CASE",
    "WHEN",
    "SELECT",
    "FROM",
    "INTERVAL",
]


def case(random: random.Random) -> None:
    """Judge one text by keys, and rows by it."""
    kind = random.randrange(4)
    if kind == 0:
        text = "".join(chr(random.randrange(1, 0x3000)) for _ in range(random.randrange(60)))
    elif kind == 1:
        count = random.choice([10, 100, 3000])
        text = random.choice(_WORDS) + f" {random.choice(_WORDS)} " * count + random.choice(_WORDS)
    else:
        text = " ".join(random.choice(_WORDS) for _ in range(random.randrange(1, 14)))
    try:
        where = parse_where(text)
        if where.judge(KEYS) is None:
            rows_kept(ROWS, where.expression(KEYS, ROWS.schema, "a.parquet"))
    except ConfigError as error:
        if "\n" in str(error):
            raise AssertionError(str(error)) from error


if __name__ == "__main__":
    main("tests.fuzz.where", case)
