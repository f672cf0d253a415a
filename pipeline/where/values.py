"""Single values of `--where`: literals, texts of hive keys, and how SQL compares and casts them.

A number is an exact fraction, so that no literal is rounded before it meets its column. A text
beside another kind is read as that kind, as SQL does with a literal in quotes; a hive key is such
a text.
"""

import operator
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import without_secrets

# None is SQL's NULL.
Value = str | bool | Fraction | date | datetime | None

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# What a comparison becomes under NOT, and with its sides exchanged.
OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
EXCHANGED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}

KINDS = ("integer", "float", "text", "boolean", "date", "timestamp", "timestamptz")

# An exponent of three digits, and as many digits in all as a double's range has: an exact fraction
# of 1e999999999 would be a gigabyte.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_MOST_DIGITS = 400
_LINE = 120
_TIME = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)"
    r"(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?) ?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII,
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def shown(text: object) -> str:
    """Return a text for a message, not longer than a line, in quotes if it is one."""
    whole = without_secrets(str(text))
    return repr(whole if len(whole) <= _LINE else f"{whole[:80]} … {whole[-20:]}")


def number_of(text: str) -> Fraction:
    """Return the number that a text is. Raises `ConfigError`."""
    text = text.strip()
    if len(text) > _MOST_DIGITS or not _NUMBER.fullmatch(text):
        raise ConfigError(f"--where: {shown(text)} is no number of at most {_MOST_DIGITS} digits")
    return Fraction(Decimal(text))


def date_of(text: str) -> date:
    """Return the day that a text is, as 2026-11-20. Raises `ConfigError`."""
    try:
        if _DAY.fullmatch(text.strip()):
            return date.fromisoformat(text.strip())
    except ValueError:
        pass
    raise ConfigError(f"--where: {shown(text)} is no date; write it as '2026-11-20'")


def time_of(text: str) -> datetime:
    """Return the time that a text is, with a zone if it has one. Raises `ConfigError`.

    A day, a month (2026-11) and a year stand for their beginning.
    """
    found = _TIME.fullmatch(text.strip())
    try:
        if found:
            year, month, day, clock, zone = found.groups()
            text = f"{year}-{month or '01'}-{day or '01'}T{clock or '00:00'}{zone or ''}"
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ConfigError(f"--where: {shown(text)} is no time; write it as '2026-11-20 06:00:00'")


def truth_of(text: str) -> bool:
    """Return whether a text says true or false. Raises `ConfigError`."""
    if text.strip().lower() not in _TRUTHS:
        raise ConfigError(f"--where: {shown(text)} is neither true nor false")
    return _TRUTHS[text.strip().lower()]


def in_utc(moment: datetime) -> datetime:
    """Return a time with a zone; one without is in UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def compare(comparison: str, left: Value, right: Value) -> bool | None:
    """Return whether a comparison holds; None is NULL.

    Raises:
        ConfigError: if the two are of kinds that do not compare.
    """
    if left is None or right is None:
        return None
    return bool(COMPARISONS[comparison](*_as_same_kind(left, right)))


def _as_same_kind(left: Value, right: Value) -> tuple[object, object]:
    if isinstance(left, str) and not isinstance(right, str):
        left = _as_kind_of(left, right)
    elif isinstance(right, str) and not isinstance(left, str):
        right = _as_kind_of(right, left)
    if isinstance(left, bool | Fraction) and isinstance(right, bool | Fraction):
        return left, right
    if isinstance(left, date) and isinstance(right, date):
        if isinstance(left, datetime) or isinstance(right, datetime):
            return in_utc(_midnight(left)), in_utc(_midnight(right))
        return left, right
    if isinstance(left, str) and isinstance(right, str):
        return left, right
    raise ConfigError(f"--where compares {_described(left)} with {_described(right)}")


def _as_kind_of(text: str, other: Value) -> Value:
    try:
        if isinstance(other, bool):
            return truth_of(text)
        if isinstance(other, datetime):
            return time_of(text)
        return date_of(text) if isinstance(other, date) else number_of(text)
    except ConfigError:
        raise ConfigError(
            f"--where compares {_described(other)} and the text {shown(text)}, which is none; "
            "write a text in single quotes"
        ) from None


def _midnight(day: date) -> datetime:
    return day if isinstance(day, datetime) else datetime.combine(day, time())


def _described(value: Value) -> str:
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, Fraction):
        return f"the number {number_text(value)}"
    if isinstance(value, datetime):
        return f"the time {value}"
    return f"the date {value}" if isinstance(value, date) else f"the text {shown(value)}"


def number_text(number: Fraction) -> str:
    """Return a number as somebody writes it."""
    if number.denominator == 1:
        return shown(number.numerator).strip("'")
    return repr(float(number)) if abs(number) < 10**300 else "of more than 300 digits"


def cast(value: Value, kind: str) -> Value:
    """Return a value cast to one of `KINDS`, as SQL casts it. Raises `ConfigError`."""
    if value is None:
        return None
    if kind == "text":
        return _text(value)
    if isinstance(value, str):
        value = _READ[kind](value)
    if kind in ("integer", "float") and isinstance(value, bool | Fraction):
        number = Fraction(value)
        return Fraction(_rounded(number)) if kind == "integer" else number
    if kind == "boolean" and isinstance(value, bool | Fraction):
        return bool(value)
    if isinstance(value, date) and kind in ("date", "timestamp", "timestamptz"):
        return _cast_time(value, kind)
    raise ConfigError(f"--where casts {_described(value)} to {kind}")


def _cast_time(value: date, kind: str) -> Value:
    if kind == "date":
        return in_utc(value).date() if isinstance(value, datetime) else value
    moment = in_utc(_midnight(value))
    return moment if kind == "timestamptz" else moment.replace(tzinfo=None)


def _text(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction) and value.denominator == 1:
        return str(value.numerator)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    raise ConfigError(f"--where: {_described(value)} may be spelled as a text in several ways")


def _rounded(number: Fraction) -> int:
    """Return the nearest integer, halves away from zero, as SQL's decimals round."""
    whole = floor(abs(number) + Fraction(1, 2))
    return whole if number >= 0 else -whole


_READ: dict[str, Callable[[str], Value]] = {
    "integer": number_of,
    "float": number_of,
    "boolean": truth_of,
    "date": lambda text: time_of(text).date() if not _DAY.fullmatch(text) else date_of(text),
    "timestamp": time_of,
    "timestamptz": time_of,
}
