"""A `--where` as an Arrow expression over the columns of one file.

Two expressions are made of one tree. That for *rows* is true exactly where SQL keeps the row. That
for *statistics* may be true of more: Arrow puts a row group's statistics into it, which do not
count NaN, and takes a null for false, so that what hangs on either is left out of it.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import types

from patchlake.pipeline.config import nearest
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.tables import type_of
from patchlake.pipeline.where import keys as by_keys
from patchlake.pipeline.where.comparing import (
    APPLIED,
    Part,
    common,
    compare_bounded,
    compare_floats,
    plain,
)
from patchlake.pipeline.where.literals import bound, cast_of, value_set
from patchlake.pipeline.where.tree import (
    Among,
    Cast,
    Compare,
    IsNull,
    IsTrue,
    Leaf,
    Like,
    Literal,
    Name,
    Node,
    Operand,
)
from patchlake.pipeline.where.values import EXCHANGED, OPPOSITE, Value, shown

# Arrow writes a AND b AND c as a chain and walks it by recursion: 20,000 links end the process. So
# chains are cut into pieces of so many, each in a coalesce, which it does not look through.
_CHAIN = 16
_NEVER = pc.scalar(False)


def expression_of(
    node: Node, keys: by_keys.Keys, schema: pa.Schema, file: str, *, for_statistics: bool
) -> pc.Expression:
    """Return what Arrow evaluates for each row. Raises `ConfigError` on names and types."""
    part = by_keys.fold(node, True, _Columns(keys, schema, file, for_statistics))
    return pc.scalar(part) if isinstance(part, bool) else part


def column_of(name: Name, keys: by_keys.Keys, schema: pa.Schema, file: str) -> str:
    """Return the column that a name means. Raises `ConfigError` if there is none."""
    found = by_keys.match(name, _dotted(schema))
    if found is None:
        raise no_column(name, keys, schema, file)
    return found


def no_column(name: Name, keys: by_keys.Keys, schema: pa.Schema, file: str) -> ConfigError:
    """Return the error that says that a name is neither key nor column."""
    note = "; a text is written in single quotes" if name.quoted else ""
    known = {*schema.names, *keys}
    return ConfigError(
        f"--where: {shown(name.text)} is no partition key and no column of {file}"
        f"{nearest(name.text[:100], known)}{note}"
    )


def is_column(name: Name, schema: pa.Schema) -> bool:
    """Return whether a name means a column. Raises `ConfigError` if it could be several."""
    return by_keys.match(name, _dotted(schema)) is not None


def _dotted(schema: pa.Schema) -> list[str]:
    """Return the names of columns, and of fields of structs."""
    found: list[str] = []
    todo = [(field.name, field.type) for field in schema]
    while todo:
        name, kind = todo.pop()
        found.append(name)
        if types.is_struct(kind):
            todo += [(f"{name}.{inner.name}", inner.type) for inner in kind]
    return list(dict.fromkeys(found))


class _Columns:
    """Folds a tree into an expression; where that is null, it stands for false."""

    def __init__(
        self, keys: by_keys.Keys, schema: pa.Schema, file: str, for_statistics: bool
    ) -> None:
        self._known = by_keys.ByKeys(keys)
        self._keys, self._schema, self._file = keys, schema, file
        self._for_statistics = for_statistics

    def join(self, every: bool, parts: Iterable[Part]) -> Part:
        """Return the parts joined; what is decided already falls out."""
        left: list[pc.Expression] = []
        for part in parts:
            if not isinstance(part, bool):
                left.append(part)
            elif part is not every:
                return not every
        if not left:
            return every
        while len(left) > 1:
            pieces = [left[at : at + _CHAIN] for at in range(0, len(left), _CHAIN)]
            joined = [_chain(piece, every) for piece in pieces]
            left = joined if len(joined) == 1 else [pc.coalesce(one, _NEVER) for one in joined]
        return left[0]

    def invert(self, part: Part) -> Part:
        """Return the opposite, of a null true."""
        if isinstance(part, bool):
            return not part
        return True if self._for_statistics else pc.invert(pc.coalesce(part, _NEVER))

    def leaf(self, node: Leaf, want: bool) -> Part:
        """Return whether a leaf is certainly true, or certainly false."""
        decided = self._known.leaf(node, want)
        if decided is not None:
            return decided
        if isinstance(node, Compare):
            return self._compare(node, want)
        column, kind = self._column(node.operand)
        if isinstance(node, IsNull):
            return pc.is_null(column) if want else pc.is_valid(column)
        if isinstance(node, Among):
            return self._among(column, kind, node, want)
        if isinstance(node, Like):
            return self._like(column, kind, node, want)
        assert isinstance(node, IsTrue)
        if not types.is_boolean(kind):
            raise ConfigError(
                f"--where: column '{_named(node.operand)}' is {kind}, and no condition by itself; "
                "compare it with something"
            )
        return column == pc.scalar(want)

    def _compare(self, node: Compare, want: bool) -> Part:
        comparison = node.comparison if want else OPPOSITE[node.comparison]
        left, right = node.left, node.right
        if self._is_known(left):
            left, right, comparison = right, left, EXCHANGED[comparison]
        column, kind = self._column(left)
        if not self._is_known(right):
            return self._columns(comparison, (column, kind), self._column(right))
        value = self._known.value(right)
        return self._against(comparison, column, (kind, _named(left)), value, node.bounded and want)

    def _against(
        self,
        comparison: str,
        column: pc.Expression,
        typed: tuple[pa.DataType, str],
        value: Value,
        bounded: bool,
    ) -> Part:
        """Compare a column with a value, as the column's type."""
        kind, name = typed
        if value is None:
            return False
        if types.is_null(kind):
            return False
        limit = bound(value, kind, name)
        if limit.lifted is not None:
            column, kind = column.cast(limit.lifted), limit.lifted
        found = compare_bounded(comparison, column, limit)
        # As in DuckDB and PostgreSQL, NaN is more than any number.
        if types.is_floating(kind) and comparison in (">", ">=", "!=") and not bounded:
            return True if self._for_statistics else pc.or_kleene(found, pc.is_nan(column))
        return found

    def _columns(
        self,
        comparison: str,
        left: tuple[pc.Expression, pa.DataType],
        right: tuple[pc.Expression, pa.DataType],
    ) -> Part:
        (one, kind), (other, beside) = left, right
        if types.is_null(kind) or types.is_null(beside):
            return False
        shared = common(kind, beside)
        if shared is None:
            raise ConfigError(
                f"--where compares a column that is {kind} with one that is {beside} in "
                f"{self._file}; CAST one of them"
            )
        if self._for_statistics:
            return True
        one, other = (c if k == shared else c.cast(shared) for c, k in (left, right))
        if not types.is_floating(shared):
            return APPLIED[comparison](one, other)
        return compare_floats(comparison, one, other)

    def _among(self, column: pc.Expression, kind: pa.DataType, node: Among, want: bool) -> Part:
        if types.is_null(kind) or (not want and None in node.values):
            return False
        values = value_set(node.values, kind, _named(node.operand))
        inside = column.isin(values)
        if want:
            return inside if len(values) else False
        return pc.and_kleene(pc.invert(inside), pc.is_valid(column))

    def _like(self, column: pc.Expression, kind: pa.DataType, node: Like, want: bool) -> Part:
        if types.is_null(kind):
            return False
        if not types.is_string(kind) and not types.is_large_string(kind):
            raise ConfigError(
                f"--where: column '{_named(node.operand)}' is {kind}, and LIKE is of texts; "
                "CAST(… AS VARCHAR) makes one"
            )
        found = pc.match_substring_regex(
            column, pattern=_regex(node), ignore_case=node.ignores_case
        )
        return found if want else pc.invert(found)

    def _is_known(self, operand: Operand) -> bool:
        while isinstance(operand, Cast):
            operand = operand.operand
        return isinstance(operand, Literal) or by_keys.key_of(operand, self._keys) is not None

    def _column(self, operand: Operand) -> tuple[pc.Expression, pa.DataType]:
        """Return a column, or a cast one, in a form that Arrow compares, and its type."""
        if isinstance(operand, Cast):
            column, kind = self._column(operand.operand)
            return cast_of(column, kind, operand.kind, _named(operand))
        assert isinstance(operand, Name)
        name = column_of(operand, self._keys, self._schema, self._file)
        kind = type_of(self._schema, name)
        if kind is None:
            raise ConfigError(
                f"--where: {shown(name)} is a field of {self._file} with a dot in its own name, "
                "which cannot be asked for; write it to a column of another name"
            )
        flat = name in self._schema.names
        column = pc.field(name) if flat else pc.field(*name.split("."))
        compared = plain(kind)
        return (column, kind) if compared == kind else (column.cast(compared), compared)


def _chain(pieces: list[pc.Expression], every: bool) -> pc.Expression:
    joined, *others = pieces
    for one in others:
        joined = pc.and_kleene(joined, one) if every else pc.or_kleene(joined, one)
    return joined


def _regex(node: Like) -> str:
    """Return RE2's spelling of a pattern."""
    signs = []
    for sign in node.pattern:
        if sign is None:
            signs.append(".*")
        else:
            signs.append(rf"\x{{{ord(sign):x}}}" if sign else ".")
    return rf"\A(?s:{''.join(signs)})\z"


def _named(operand: Operand) -> str:
    while isinstance(operand, Cast):
        operand = operand.operand
    assert isinstance(operand, Name)
    return operand.text


def rows_kept(rows: pa.Table, expression: pc.Expression) -> pa.ChunkedArray:
    """Return for each row, in order, whether the expression holds; null is false.

    Raises:
        ConfigError: if a cell cannot be cast as the expression asks.
    """
    judged = ds.dataset(rows.combine_chunks())
    try:
        holds = judged.scanner(columns={"holds": expression}).to_table().column("holds")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"--where does not fit a row: {error}") from None
    return pc.fill_null(holds, fill_value=False)
