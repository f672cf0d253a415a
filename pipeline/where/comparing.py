"""How Arrow compares a column with another one, or with a value that may not be one of its own."""

from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from patchlake.pipeline.where.literals import Bound
from patchlake.pipeline.where.values import EXCHANGED

# A subtree that keys alone decide is a bool.
Part: TypeAlias = "bool | pc.Expression"


def plain(kind: pa.DataType) -> pa.DataType:
    """Return a type that Arrow compares: it has no functions of dictionaries, views and halves."""
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_string_view(kind):
        return pa.large_string()
    return pa.float32() if types.is_float16(kind) else kind


def common(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return the type in which two columns are compared; None if there is none."""
    if left == right:
        return left
    if all(types.is_string(kind) or types.is_large_string(kind) for kind in (left, right)):
        return pa.large_string()
    return _common_number(left, right) or _common_time(left, right)


def _common_number(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    if all(types.is_integer(kind) for kind in (left, right)):
        # No integer of 64 bits, with or without a sign, is more than 20 digits.
        return pa.decimal128(20, 0) if pa.uint64() in (left, right) else pa.int64()
    if all(types.is_integer(kind) or types.is_floating(kind) for kind in (left, right)):
        return pa.float64()
    scaled = [kind for kind in (left, right) if types.is_decimal(kind)]
    if scaled and all(types.is_integer(kind) or types.is_decimal(kind) for kind in (left, right)):
        return pa.decimal256(76, max(kind.scale for kind in scaled))
    return None


def _common_time(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    times = [types.is_temporal(kind) and not types.is_time(kind) for kind in (left, right)]
    zoned = [types.is_timestamp(kind) and kind.tz is not None for kind in (left, right)]
    if all(times) and not any(types.is_duration(kind) for kind in (left, right)):
        return pa.timestamp("us", "UTC") if any(zoned) else pa.timestamp("us")
    return None


# By its sign in SQL.
APPLIED = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def compare_floats(comparison: str, one: pc.Expression, other: pc.Expression) -> pc.Expression:
    """Compare two columns of floats; NaN is equal to itself, and more than any number."""
    nan, beside = pc.is_nan(one), pc.is_nan(other)
    if comparison in (">", ">="):
        return compare_floats(EXCHANGED[comparison], other, one)
    equal = pc.or_kleene(pc.equal(one, other), pc.and_kleene(nan, beside))
    less = pc.or_kleene(pc.less(one, other), pc.and_kleene(pc.invert(nan), beside))
    if comparison == "<=":
        return pc.or_kleene(less, equal)
    return {"=": equal, "!=": pc.invert(equal), "<": less}[comparison]


def compare_bounded(comparison: str, column: pc.Expression, limit: Bound) -> Part:
    """Compare with a value that may lie between two of the column's, or beyond them all."""
    if limit.exact is not None:
        return APPLIED[comparison](column, pc.scalar(limit.exact))
    if comparison == "=":
        return False
    below, above = limit.below, limit.above
    if comparison in ("<", "<="):
        return False if below is None else pc.less_equal(column, pc.scalar(below))
    if comparison in (">", ">="):
        return False if above is None else pc.greater_equal(column, pc.scalar(above))
    return pc.is_valid(column)
