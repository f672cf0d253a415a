"""`--where`: DuckDB's answer is the oracle; what is not of the grammar is refused in one line."""

import copy
import datetime as dt
import subprocess
import sys
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.where.arrow import rows_kept
from patchlake.pipeline.where.condition import parse_where

KEYS = {"hour": "9", "nul": "__HIVE_DEFAULT_PARTITION__", "dt": "2026-11-20", "group": "tile"}
DAYS = [dt.date(2026, 1, 1), dt.date(2026, 1, 2), None, dt.date(2027, 1, 1), dt.date(1999, 1, 1)]
TIMES = [None if day is None else dt.datetime.combine(day, dt.time()) for day in DAYS]
TIMES[0] = dt.datetime.combine(DAYS[0], dt.time(3, 4, 5, 678000))
ROWS = pa.table(
    {
        "n": range(5),
        "i": pa.array([1, 2, None, 9, -3], pa.int16()),
        "u": pa.array([1, 2, None, 2**64 - 1, 0], pa.uint64()),
        "f": [1.0, float("nan"), None, 9.0, -2.5],
        "s": ["a", "A%", None, "x_z", ""],
        "b": [True, False, None, True, False],
        "d": DAYS,
        "ts": pa.array(TIMES, pa.timestamp("ms")),
        "dec": pa.array([Decimal("1.25"), None, None, 9, Decimal("-1.5")], pa.decimal128(10, 2)),
        "dict": pa.array(["a", "b", None, "z", "a"]).dictionary_encode(),
        "select": ["a", None, "q", "r", "s"],
        "Odd Name": [1, 2, 3, None, 5],
    }
)


@pytest.fixture(scope="module")
def oracle():
    connection = duckdb.connect()
    connection.execute("SET timezone = 'UTC'")
    connection.register("source", ROWS)
    connection.execute(
        "CREATE VIEW t AS SELECT *, '9' AS hour, NULL::VARCHAR AS nul, '2026-11-20' AS dt, "
        "'tile' AS \"group\" FROM source"
    )
    return connection


def kept(text):
    where = parse_where(text)
    verdict = where.judge(KEYS)
    expression = where.expression(KEYS, ROWS.schema, "a.parquet")
    holds = rows_kept(ROWS, expression).to_pylist()
    if verdict is not None:
        assert holds == [verdict] * len(ROWS)
    return [number for number, is_kept in enumerate(holds) if is_kept]


def of_duckdb(connection, text):
    found = connection.execute(f"SELECT n FROM t WHERE {text} ORDER BY n").fetchall()
    return [number for (number,) in found]


CONDITIONS = [
    "i = 1",
    "i > 1.5",
    "i >= -2.5",
    "i < 1e3",
    "i <> 1",
    "not i = 1",
    "i in (1,9)",
    "i not in (1,9)",
    "i not in (1,null)",
    "i in (1,null)",
    "i in (1, 2.5, 9)",
    "i not between 1 and 5",
    "i between 1 and 5",
    "u > 5",
    "u = 18446744073709551615",
    "u < 99999999999999999999999",
    "u > -1",
    "f > 1",
    "not f > 1",
    "f != 1",
    "not f <> 1",
    "f <= 1",
    "f between -3 and 100",
    "f not between -3 and 5",
    "f is null",
    "s like 'a%'",
    "s ilike 'a%'",
    "s not like 'a%'",
    "s like 'x\\_z' escape '\\'",
    "s like '_!%' escape '!'",
    "s in ('a','')",
    "s not in ('a')",
    "s > 'a'",
    "b",
    "not b",
    "b is not true",
    "b = false",
    "(i=1) is null",
    "(i = 1 and s = 'a') is not true",
    "d = DATE '2026-01-01'",
    "d < '2026-06-01'",
    "ts < '2026-01-01 03:04:05.6785'",
    "ts >= TIMESTAMP '2026-01-02 00:00:00'",
    "ts = d",
    "cast(ts as date) = d",
    "i::varchar = '9'",
    "dec > 1.2",
    "dec = 1.25",
    "dec != 1.255",
    "dec in (1.25, 9, 7.333)",
    "dec between -1.501 and 1.2501",
    "dict = 'a'",
    "dict <> 'a'",
    "dict in ('a','z')",
    "not dict in ('a')",
    "\"select\" = 'a'",
    '"Odd Name" >= 2',
    '"odd name" >= 2',
    "nul = 'x' or i = 1",
    "not (nul = 'x') or i = 1",
    "nul is null and i = 1",
    "cast(hour as int) < 10 and i is not null",
    "dt >= '2026-11-20' and i = 1",
    "cast(dt as date) > date '2026-11-01' and b",
    "i = f",
    "i < f",
    "i != dec",
    "s = dict",
    "ts >= d",
    "not (i = 1 or (s like 'x%' and b))",
    "(i > 1) is not null",
    "i = '9'",
    "b = 1",
    "f = -2.5",
    "cast(i as double) = 9",
    "d::timestamp = ts",
    "\"group\" <> 'tile' OR i = 1",
]


@pytest.mark.parametrize("text", CONDITIONS)
def test_rows_are_those_of_duckdb(text, oracle):
    assert kept(text) == of_duckdb(oracle, text)


joined = st.recursive(
    st.sampled_from(CONDITIONS).map("({})".format),
    lambda inner: (
        st.builds("({} AND {})".format, inner, inner)
        | st.builds("({} OR {})".format, inner, inner)
        | st.builds("(NOT {})".format, inner)
        | st.builds("({} IS {})".format, inner, st.sampled_from(["NULL", "NOT NULL", "TRUE"]))
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=25)
@given(joined)
def test_joined_in_any_way_they_still_are(oracle, text):
    assert kept(text) == of_duckdb(oracle, text)


def test_beside_a_number_a_key_is_a_number_and_beside_a_date_a_date():
    judge = lambda text: parse_where(text).judge(KEYS)  # noqa: E731
    holds = ("hour < 10", "10 > hour", "hour in (8, '9')", "dt > DATE '2026-11-02'", "nul is null")
    for text in (*holds, "group == 'tile' and HOUR = 9", "\"Group\" = 'tile'"):
        assert judge(text)
    for text in ("hour < '10'", "not (nul = 'x')"):
        assert not judge(text)
    with pytest.raises(ConfigError, match="the number 5 and the text 'tile'"):
        judge("group < 5")


def test_ten_thousand_names_are_answered_and_many_ors():
    many = "s in (" + ", ".join(f"'g-{k}'" for k in range(10_000)) + ", 'a')"
    assert kept(many) == [0]
    assert kept(" or ".join(["i = 1"] * 3000)) == [0]
    assert kept("i < " + "9" * 100) == [0, 1, 3, 4]
    assert copy.deepcopy(parse_where(many)) == parse_where(many)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1 = 1", "'a' = 'a'", "upper(s) = 'A'", "i + 1 = 2", "i in (select 1)", "1 < i < 2"),
        *(
            "i = 1; s = 'a'",
            "i",
            "s = 5",
            "i = 'x'",
            "d = 5",
            "i = 1e99999",
            "s like 'a!' escape '!'",
        ),
        *("not " * 900 + "i = 1", "(" * 300 + "i = 1" + ")" * 300, "i" + " is null" * 3000),
        *("i" + "::int" * 3000 + " = 1", "i = " + "- " * 500 + "1", "s = 'a", "\0", "a" * 9999),
        *(
            "__import__('os')",
            "case when b then i end",
            "i = :x",
            "open('x') = s",
            "try_cast(s as int) = 1",
        ),
        *("s::int = 1", "i between symmetric 1 and 2"),
    ],
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"^--where") as refused:
        kept(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 800


def test_an_unknown_name_is_told_the_nearest_and_that_a_text_has_single_quotes():
    with pytest.raises(ConfigError, match="'grup' is no partition key; did you mean 'group'"):
        parse_where("grup = 'tile'")(KEYS)
    with pytest.raises(ConfigError, match=r"'til' is no partition key.*in single quotes"):
        parse_where('group = "til"')(KEYS)


def test_who_has_no_condition_does_not_import_the_parser():
    """It takes a quarter of a second, in every process that reads a lake."""
    code = "import sys, patchlake.pipeline.lake.survey; print('sqlglot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
