"""`--where`: an expression over a fragment's partition keys that keeps or drops it whole.

    dt >= '2026-11-20' and group in ('tile', 'hazelnut')

Names are the hive keys of the path, `group` and `path`. Comparison is of text, unless the other
side is a number. The grammar is Python's for `and`, `or`, `not`, comparisons and tuples, and
nothing else: the expression is walked, never evaluated by Python.
"""

import ast
import operator
from collections.abc import Callable, Mapping

from pipeline.config import nearest
from pipeline.errors import ConfigError

_Value = str | float | tuple[str | float, ...]
Where = Callable[[Mapping[str, str]], bool]

_COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
}


def parse_where(text: str | None) -> Where:
    """Return a predicate over partition keys; None keeps everything.

    Raises:
        ConfigError: on anything outside the grammar. The predicate raises it for unknown names.
    """
    if text is None:
        return lambda _keys: True
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"--where {text!r}: {error.msg}") from None
    _check(tree, text)
    return lambda keys: _holds(tree, keys)


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, text)
    elif not isinstance(node, ast.Compare):
        raise ConfigError(
            f"--where {text!r}: '{ast.unparse(node)}' is not a comparison; "
            "write for example: dt >= '2026-11-20' and group == 'tile'"
        )


def _holds(node: ast.expr, keys: Mapping[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        results = (_holds(value, keys) for value in node.values)
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        return not _holds(node.operand, keys)
    assert isinstance(node, ast.Compare)
    left = _value(node.left, keys)
    for comparison, right_node in zip(node.ops, node.comparators, strict=True):
        right = _value(right_node, keys)
        if not _compare(comparison, left, right, ast.unparse(node)):
            return False
        left = right
    return True


def _compare(comparison: ast.cmpop, left: _Value, right: _Value, text: str) -> bool:
    if isinstance(comparison, ast.In | ast.NotIn):
        if not isinstance(right, tuple):
            raise ConfigError(f"--where: '{text}' needs a list in parentheses after 'in'")
        inside = any(_same(left, item) for item in right)
        return inside == isinstance(comparison, ast.In)
    compare = _COMPARISONS.get(type(comparison))
    if compare is None or isinstance(left, tuple) or isinstance(right, tuple):
        raise ConfigError(f"--where: '{text}' is not a comparison of two values")
    return compare(*_as_same_kind(left, right))


def _same(left: _Value, right: str | float) -> bool:
    return not isinstance(left, tuple) and operator.eq(*_as_same_kind(left, right))


def _as_same_kind(left: str | float, right: str | float) -> tuple[object, object]:
    # A partition key is text; beside a number it is read as one, so that hour < 10 is true of '9'.
    if isinstance(left, str) == isinstance(right, str):
        return left, right
    try:
        return float(left), float(right)
    except ValueError:
        raise ConfigError(f"--where compares the number and the text {left!r}, {right!r}") from None


def _value(node: ast.expr, keys: Mapping[str, str]) -> _Value:
    if isinstance(node, ast.Name):
        if node.id not in keys:
            raise ConfigError(f"--where: '{node.id}' is no partition key{nearest(node.id, keys)}")
        return keys[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        items = [_value(item, keys) for item in node.elts]
        return tuple(item for item in items if not isinstance(item, tuple))
    raise ConfigError(f"--where: '{ast.unparse(node)}' is neither a name nor a literal")
