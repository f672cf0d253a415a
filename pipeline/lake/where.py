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

Where = Callable[[Mapping[str, str]], bool]

_COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
}
_LISTS = (ast.Tuple, ast.List)


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
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for comparison, left, right in zip(node.ops, sides, sides[1:], strict=False):
            _check_comparison(comparison, left, right, ast.unparse(node))
    else:
        raise ConfigError(
            f"--where {text!r}: '{ast.unparse(node)}' is not a comparison; "
            "write for example: dt >= '2026-11-20' and group == 'tile'"
        )


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


def _holds(node: ast.expr, keys: Mapping[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        results = (_holds(value, keys) for value in node.values)
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        return not _holds(node.operand, keys)
    assert isinstance(node, ast.Compare)
    sides = [node.left, *node.comparators]
    return all(
        _compare(comparison, left, right, keys)
        for comparison, left, right in zip(node.ops, sides, sides[1:], strict=False)
    )


def _compare(
    comparison: ast.cmpop, left: ast.expr, right: ast.expr, keys: Mapping[str, str]
) -> bool:
    value = _value(left, keys)
    if isinstance(right, _LISTS):
        items = [_value(item, keys) for item in right.elts]
        inside = any(operator.eq(*_as_same_kind(value, item)) for item in items)
        return inside == isinstance(comparison, ast.In)
    return _COMPARISONS[type(comparison)](*_as_same_kind(value, _value(right, keys)))


def _as_same_kind(left: str | float, right: str | float) -> tuple[object, object]:
    # A partition key is text; beside a number it is read as one, so that hour < 10 is true of '9'.
    if isinstance(left, str) == isinstance(right, str):
        return left, right
    try:
        return float(left), float(right)
    except ValueError:
        raise ConfigError(f"--where compares the number and the text {left!r}, {right!r}") from None


def _value(node: ast.expr, keys: Mapping[str, str]) -> str | float:
    if isinstance(node, ast.Name):
        if node.id not in keys:
            raise ConfigError(f"--where: '{node.id}' is no partition key{nearest(node.id, keys)}")
        return keys[node.id]
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, str | int | float)
    return node.value
