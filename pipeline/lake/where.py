"""`--where`: an expression over partition keys and columns.

    dt >= '2026-11-20' and group in ('tile', 'hazelnut') and exposure_us < 900

Names are the hive keys of the path, `group`, `path`, and columns of the table; a key hides a column
of its name. The grammar is Python's for `and`, `or`, `not`, comparisons and tuples, and nothing
else, with SQL's `=` and `AND` taken for what they mean: the expression is walked, never evaluated
by Python.

A key is text, unless the other side is a number; a column is what its type says, and null where
it is null, which compares with nothing. What hangs on columns is handed to Arrow, which knows from
a footer's statistics that a row group has no such row.
"""

import ast
import io
import operator
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.config import nearest
from pipeline.errors import ConfigError

_COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
}
_LISTS = (ast.Tuple, ast.List)
_SQL = {"=": "==", "and": "and", "or": "or", "not": "not", "in": "in"}


@dataclass(frozen=True)
class Where:
    """An expression. Build it with `parse_where`."""

    text: str

    @cached_property
    def _tree(self) -> ast.expr:
        return _parsed(self.text)

    @cached_property
    def _names(self) -> list[str]:
        return [node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)]

    def judge(self, keys: Mapping[str, str]) -> bool | None:
        """Return whether it holds for all rows, for none, or (None) hangs on names beyond `keys`.

        Raises:
            ConfigError: if a number is compared with a key that is none.
        """
        return _holds(self._tree, keys)

    def __call__(self, keys: Mapping[str, str]) -> bool:
        """Return whether it holds, where nothing but keys is allowed. Raises `ConfigError`."""
        holds = self.judge(keys)
        if holds is None:
            unknown = next(name for name in self._names if name not in keys)
            raise ConfigError(f"--where: '{unknown}' is no partition key{nearest(unknown, keys)}")
        return holds

    def columns(self, keys: Mapping[str, str]) -> list[str]:
        """Return the columns that it hangs on."""
        return [name for name in dict.fromkeys(self._names) if name not in keys]

    def expression(self, keys: Mapping[str, str], schema: pa.Schema, file: str) -> pc.Expression:
        """Return what Arrow evaluates for each row of a file, or rules out by statistics.

        Args:
            keys: Names that have one value in the whole file.
            schema: The file's columns.
            file: For the message.

        Raises:
            ConfigError: if a name is neither, or types do not go together.
        """
        known = {**dict.fromkeys(schema.names, ""), **keys}
        for name in self.columns(keys):
            if name not in known:
                raise ConfigError(
                    f"--where: '{name}' is no partition key and no column of {file}"
                    f"{nearest(name, known)}"
                )
        expression = _expression(self._tree, keys, schema)
        try:
            ds.dataset(schema.empty_table()).scanner(filter=expression)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(f"--where {self.text!r} does not fit {file}: {error}") from None
        return expression


def parse_where(text: str) -> Where:
    """Return the expression of a text. Raises `ConfigError` on anything outside the grammar."""
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"--where {text!r}: {error}") from None
    _check(tree, text)
    return Where(text)


def read_where(text: str | None) -> Where | None:
    """Return the expression of an option that may be absent. Raises as `parse_where`."""
    return None if text is None else parse_where(text)


class _Signs(ast.NodeTransformer):
    """Makes -5 a literal: Python knows it as an operation."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return node if isinstance(number, bool) else ast.Constant(-number)
        return node


def _parsed(text: str) -> ast.expr:
    tree: ast.expr = _Signs().visit(ast.parse(_as_python(text.strip()), mode="eval").body)
    return tree


def _as_python(text: str) -> str:
    """Return the text with SQL's spellings replaced by Python's."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return text
    lines = text.splitlines(keepends=True)
    for token in reversed(tokens):
        meant = _SQL.get(token.string.lower())
        if meant is not None:
            line, begin, end = token.start[0] - 1, token.start[1], token.end[1]
            lines[line] = lines[line][:begin] + meant + lines[line][end:]
    return "".join(lines)


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, text)
    elif isinstance(node, ast.Compare):
        for comparison, left, right in _pairs(node):
            _check_comparison(comparison, left, right, ast.unparse(node))
    else:
        raise ConfigError(
            f"--where {text!r}: '{ast.unparse(node)}' is not a comparison; "
            "write for example: dt >= '2026-11-20' and group == 'tile'"
        )


def _pairs(node: ast.Compare) -> list[tuple[ast.cmpop, ast.expr, ast.expr]]:
    sides = [node.left, *node.comparators]
    return list(zip(node.ops, sides, sides[1:], strict=False))


def _check_comparison(comparison: ast.cmpop, left: ast.expr, right: ast.expr, text: str) -> None:
    for side in (left, right):
        for value in side.elts if isinstance(side, _LISTS) else [side]:
            literal = isinstance(value, ast.Constant) and isinstance(value.value, str | int | float)
            if not literal and not isinstance(value, ast.Name):
                raise ConfigError(
                    f"--where: '{ast.unparse(value)}' is neither a name nor a literal"
                )
    lists = [isinstance(side, _LISTS) for side in (left, right)]
    if isinstance(comparison, ast.In | ast.NotIn):
        if lists != [False, True]:
            raise ConfigError(f"--where: '{text}' needs a list in parentheses after 'in'")
    elif type(comparison) not in _COMPARISONS or any(lists):
        raise ConfigError(f"--where: '{text}' is not a comparison of two values")


def _holds(node: ast.expr, keys: Mapping[str, str]) -> bool | None:
    """Return whether a node holds; None where that hangs on names beyond `keys`."""
    if isinstance(node, ast.BoolOp):
        join = _all if isinstance(node.op, ast.And) else _any
        return join([_holds(value, keys) for value in node.values])
    if isinstance(node, ast.UnaryOp):
        holds = _holds(node.operand, keys)
        return None if holds is None else not holds
    assert isinstance(node, ast.Compare)
    return _all([_compare(*pair, keys) for pair in _pairs(node)])


def _all(results: list[bool | None]) -> bool | None:
    return False if False in results else (None if None in results else True)


def _any(results: list[bool | None]) -> bool | None:
    return True if True in results else (None if None in results else False)


def _compare(
    comparison: ast.cmpop, left: ast.expr, right: ast.expr, keys: Mapping[str, str]
) -> bool | None:
    value = _value(left, keys)
    values = [_value(v, keys) for v in (right.elts if isinstance(right, _LISTS) else [right])]
    if value is None:
        return None
    if isinstance(right, _LISTS):
        inside = _any([_equal(value, item) for item in values])
        return None if inside is None else inside == isinstance(comparison, ast.In)
    if values[0] is None:
        return None
    return bool(_COMPARISONS[type(comparison)](*_as_same_kind(value, values[0])))


def _equal(left: str | float, right: str | float | None) -> bool | None:
    return None if right is None else operator.eq(*_as_same_kind(left, right))


def _as_same_kind(left: str | float, right: str | float) -> tuple[object, object]:
    # A partition key is text; beside a number it is read as one, so that hour < 10 is true of '9'.
    if isinstance(left, str) == isinstance(right, str):
        return left, right
    try:
        return float(left), float(right)
    except ValueError:
        raise ConfigError(f"--where compares the number and the text {left!r}, {right!r}") from None


def _value(node: ast.expr, keys: Mapping[str, str]) -> str | float | None:
    if isinstance(node, ast.Name):
        return keys.get(node.id)
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, str | int | float)
    return node.value


def _expression(node: ast.expr, keys: Mapping[str, str], schema: pa.Schema) -> pc.Expression:
    decided = _holds(node, keys)
    if decided is not None:
        return pc.scalar(decided)
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(join, [_expression(value, keys, schema) for value in node.values])
    if isinstance(node, ast.UnaryOp):
        return ~_expression(node.operand, keys, schema)
    assert isinstance(node, ast.Compare)
    return reduce(operator.and_, [_relation(*pair, keys, schema) for pair in _pairs(node)])


def _relation(
    comparison: ast.cmpop,
    left: ast.expr,
    right: ast.expr,
    keys: Mapping[str, str],
    schema: pa.Schema,
) -> pc.Expression:
    if isinstance(right, _LISTS):
        equals = [_relation(ast.Eq(), left, item, keys, schema) for item in right.elts]
        inside = reduce(operator.or_, equals, pc.scalar(value=False))
        return inside if isinstance(comparison, ast.In) else ~inside
    columns = [n.id for n in (left, right) if isinstance(n, ast.Name) and n.id not in keys]
    if not columns:
        return pc.scalar(bool(_compare(comparison, left, right, keys)))
    column = columns[0]
    kind = schema.field(column).type
    sides = []
    for side in (left, right):
        value = _value(side, keys)
        if value is None:
            assert isinstance(side, ast.Name)
            sides.append(pc.field(side.id))
        else:
            sides.append(pc.scalar(_as_type(value, kind, column)))
    compared: pc.Expression = _COMPARISONS[type(comparison)](*sides)
    return compared


def _as_type(value: str | float, kind: pa.DataType, column: str) -> pa.Scalar:
    """Return a value as one of a column's type. Raises `ConfigError` where it is none."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        if pa.types.is_integer(kind) and not isinstance(value, str):
            # Of its own type, which may be wider: 100000 is more than any int16.
            return pa.scalar(value)
        if pa.types.is_timestamp(kind):
            return _as_time(str(value), kind)
        if isinstance(value, str):
            return pa.scalar(value).cast(kind)
        if pa.types.is_boolean(kind) or pa.types.is_floating(kind):
            return pa.scalar(value, kind)
        if pa.types.is_decimal(kind):
            return pa.scalar(str(value)).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ConfigError(f"--where: {value!r} is no {kind}, as column '{column}' is") from None
    raise ConfigError(f"--where compares column '{column}', which is {kind}, with {value!r}")


def _as_time(text: str, kind: pa.TimestampType) -> pa.Scalar:
    """Return a time; one without a zone is in UTC where the column has a zone."""
    try:
        time = pa.scalar(text).cast(pa.timestamp(kind.unit))
    except pa.ArrowInvalid:
        time = pa.scalar(text).cast(pa.timestamp(kind.unit, "UTC"))
    return time.cast(kind)
