"""Values of `--where` in the type of the column that they are compared with, never rounded.

A value that the type has not, as 9.5 beside integers or 300 beside bytes, lies between two of its
values, or beyond them all; comparisons say the same of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Context, Decimal
from fractions import Fraction
from math import ceil, floor

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.where.values import (
    Value,
    cast,
    date_of,
    in_utc,
    number_of,
    number_text,
    shown,
    time_of,
    truth_of,
)


@dataclass(frozen=True)
class Bound:
    """A value as one of a type: exactly, or between the nearest below and above, if there are."""

    exact: pa.Scalar | None = None
    below: pa.Scalar | None = None
    above: pa.Scalar | None = None
    # The column is cast to this first.
    lifted: pa.DataType | None = None


def bound(value: Value, kind: pa.DataType, column: str) -> Bound:
    """Return a value, not null, as one of a column's type.

    Raises:
        ConfigError: if it is of another kind than the column.
    """
    if types.is_string(kind) or types.is_large_string(kind):
        if isinstance(value, str):
            return Bound(pa.scalar(value, kind))
    elif types.is_boolean(kind):
        return _truth(value, column)
    elif types.is_integer(kind) or types.is_decimal(kind) or types.is_floating(kind):
        number = _number(value, kind, column)
        return _float(number, kind) if types.is_floating(kind) else _scaled(number, kind)
    elif types.is_date(kind) or types.is_timestamp(kind):
        found = _day(value, kind) if types.is_date(kind) else _time(value, kind)
        if found is not None:
            return found
    raise _unfit(value, kind, column)


def value_set(values: Sequence[Value], kind: pa.DataType, column: str) -> pa.Array:
    """Return those of some values that a column of the type can be equal to; nulls fall out.

    Raises:
        ConfigError: as `bound`.
    """
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if is_text and all(isinstance(value, str | None) for value in values):
        return pa.array([value for value in values if value is not None], kind)
    limits = [bound(value, kind, column) for value in values if value is not None]
    if any(limit.lifted is not None for limit in limits):
        raise ConfigError(
            f"--where: the list beside column '{column}', which is {kind}, has values that are not"
        )
    exact = [limit.exact for limit in limits if limit.exact is not None]
    return pa.array([scalar.as_py() for scalar in exact], kind)


def _unfit(value: Value, kind: pa.DataType, column: str) -> ConfigError:
    said = number_text(value) if isinstance(value, Fraction) else shown(value)
    if types.is_string(kind) or types.is_large_string(kind):
        way = "write it in single quotes"
    elif types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        way = "it can only be asked IS [NOT] NULL"
    else:
        way = "write a value of that type, or CAST the column"
    return ConfigError(f"--where: {said} is no {kind}, as column '{column}' is; {way}")


def _truth(value: Value, column: str) -> Bound:
    if isinstance(value, str):
        value = truth_of(value)
    if isinstance(value, bool) or value in (0, 1):
        return Bound(pa.scalar(bool(value)))
    raise _unfit(value, pa.bool_(), column)


def _number(value: Value, kind: pa.DataType, column: str) -> Fraction:
    if isinstance(value, str):
        try:
            return number_of(value)
        except ConfigError:
            raise _unfit(value, kind, column) from None
    if isinstance(value, bool | Fraction):
        return Fraction(value)
    raise _unfit(value, kind, column)


def _float(number: Fraction, kind: pa.DataType) -> Bound:
    try:
        nearest = float(number)
    except OverflowError:
        nearest = float("inf") if number > 0 else float("-inf")
    return Bound(pa.scalar(nearest, kind))


def _scaled(number: Fraction, kind: pa.DataType) -> Bound:
    """Return a number as one of integers, or of decimals, which are integers of a scale."""
    if types.is_decimal(kind):
        scale, most = kind.scale, 10**kind.precision - 1
        least = -most
    else:
        signed = types.is_signed_integer(kind)
        least = -(2 ** (kind.bit_width - 1)) if signed else 0
        most, scale = 2 ** (kind.bit_width - (1 if signed else 0)) - 1, 0
    exact = number * Fraction(10) ** scale
    down, up = floor(exact), ceil(exact)
    if down == up and least <= down <= most:
        return Bound(_integer(down, scale, kind))
    below = None if down < least else _integer(min(down, most), scale, kind)
    above = None if up > most else _integer(max(up, least), scale, kind)
    return Bound(None, below, above)


def _integer(units: int, scale: int, kind: pa.DataType) -> pa.Scalar:
    if types.is_decimal(kind):
        return pa.scalar(Decimal(units).scaleb(-scale, Context(prec=100)), kind)
    return pa.scalar(units, kind)


def _day(value: Value, kind: pa.DataType) -> Bound | None:
    if isinstance(value, datetime):
        lifted = pa.timestamp("us", "UTC" if value.tzinfo else None)
        return Bound(pa.scalar(value, lifted), lifted=lifted)
    if isinstance(value, str):
        value = date_of(value)
    return Bound(pa.scalar(value, kind)) if isinstance(value, date) else None


def _time(value: Value, kind: pa.TimestampType) -> Bound | None:
    if isinstance(value, str):
        value = time_of(value)
    elif not isinstance(value, date):
        return None
    moment = cast(value, "timestamptz")
    assert isinstance(moment, datetime)
    # Text without a zone is in UTC where the column has one.
    plain = in_utc(moment).replace(tzinfo=None)
    exact = pa.scalar(plain, pa.timestamp("us"))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    units = Fraction(exact.value, 10**6) * per_second
    down, up = floor(units), ceil(units)
    most = 2**63 - 1
    if down == up and -most <= down <= most:
        return Bound(pa.scalar(down, pa.int64()).cast(kind))
    below = None if down < -most else pa.scalar(min(down, most), pa.int64()).cast(kind)
    above = None if up > most else pa.scalar(max(up, -most), pa.int64()).cast(kind)
    return Bound(None, below, above)


def cast_of(
    column: pc.Expression, kind: pa.DataType, to: str, name: str
) -> tuple[pc.Expression, pa.DataType]:
    """Return a column cast to one of `where.values.KINDS`, and its type then.

    Raises:
        ConfigError: if SQL's cast is not Arrow's, or there is none.
    """
    target = _target(kind, to)
    if target is None:
        raise ConfigError(
            f"--where: column '{name}' is {kind}, and is not cast to {to}; compare it as it is"
        )
    if target == kind:
        return column, kind
    if to == "integer" and types.is_floating(kind):
        column = pc.round(column, round_mode="half_to_even")
    elif to == "integer" and types.is_decimal(kind):
        column = pc.round(column, round_mode="half_towards_infinity")
    # Of a time its day, whatever the hour.
    safe = not (types.is_timestamp(kind) and to == "date")
    return column.cast(target, safe=safe), target


def _target(kind: pa.DataType, to: str) -> pa.DataType | None:
    """Return the type that a column is cast to; None where it cannot be."""
    text = types.is_string(kind) or types.is_large_string(kind)
    whole = types.is_integer(kind) or types.is_boolean(kind)
    if types.is_null(kind):
        return kind
    if to == "text":
        return kind if text else pa.string() if whole or types.is_date(kind) else None
    if to in ("integer", "float"):
        number = whole or types.is_floating(kind) or types.is_decimal(kind)
        # A uint64 keeps its range.
        wide = kind if types.is_uint64(kind) else pa.int64()
        return (wide if to == "integer" else pa.float64()) if number or text else None
    if to == "boolean":
        return pa.bool_() if whole or text else None
    return _target_time(kind, to, is_text=text)


def _target_time(kind: pa.DataType, to: str, *, is_text: bool) -> pa.DataType | None:
    text = is_text
    day = types.is_date(kind) or types.is_timestamp(kind) or text
    zoned = types.is_timestamp(kind) and kind.tz is not None
    if not day:
        return None
    if to == "date":
        # A zone's day is not that of UTC.
        return None if zoned and kind.tz != "UTC" else pa.date32()
    if text:
        return None if to == "timestamptz" else pa.timestamp("us")
    unit = kind.unit if types.is_timestamp(kind) else "us"
    return pa.timestamp(unit, "UTC") if to == "timestamptz" else pa.timestamp(unit)
