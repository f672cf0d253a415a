"""The text of `--where` as a tree: sqlglot parses it, and what is not of the grammar is refused."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.where.tree import (
    Among,
    Cast,
    Compare,
    Is,
    IsNull,
    IsTrue,
    Junction,
    Like,
    Literal,
    Name,
    Node,
    Not,
    Operand,
    names,
)
from patchlake.pipeline.where.values import cast, number_of, shown

ALLOWED = (
    "allowed are names, literals and CAST, compared by = != < <= > >=, BETWEEN, IN, LIKE or IS "
    "[NOT] NULL, and joined by AND, OR and NOT, for example: "
    "dt >= '2026-11-20' AND \"group\" = 'tile'"
)
# 10,000 names in an IN are some 130,000; sqlglot takes about a second for that.
MOST_CHARACTERS = 1_000_000
# Of what stands in what. Deeper is no question that somebody asks.
DEEPEST = 100
_PARTS_SHOWN = 400


@lru_cache(16)
def parse(text: str) -> Node:
    """Return the tree of an expression. Linear in its length, some 10 us a character.

    Raises:
        ConfigError: on anything outside the grammar, or a comparison without a name.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"--where has {len(text)} characters, more than {MOST_CHARACTERS}; "
            "name fewer values, or what they have in common"
        )
    # A thread of its own has Python's whole stack, whoever asks: what is too deep is always the
    # same.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_parsed, text).result()


def _parsed(text: str) -> Node:
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL)
    dialect = DuckDB()
    try:
        found = dialect.parser().parse_into(exp.Condition, dialect.tokenize(text), text)
        if len(found) != 1 or not isinstance(found[0], exp.Expression):
            raise ConfigError(f"--where {shown(text)} is not one condition; {ALLOWED}")
        return _Reader(text).condition(found[0], 0)
    except RecursionError:
        raise ConfigError(
            f"--where {shown(text)} nests too deeply; say it in fewer steps"
        ) from None
    except (SqlglotError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        # sqlglot's message is several lines, and of some odd texts another exception.
        raise ConfigError(
            f"--where {shown(text)} is not SQL; {ALLOWED}. A name that is a word of SQL goes in "
            "double quotes"
        ) from None


_COMPARISONS: dict[type[exp.Expression], str] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_T = exp.DataType.Type
_KINDS = {
    "integer": (_T.INT, _T.BIGINT, _T.SMALLINT, _T.TINYINT, _T.INT128, _T.UBIGINT, _T.UINT),
    "float": (_T.DOUBLE,),
    "text": (_T.TEXT, _T.VARCHAR),
    "boolean": (_T.BOOLEAN,),
    "date": (_T.DATE,),
    "timestamp": (_T.TIMESTAMP, _T.TIMESTAMPNTZ),
    "timestamptz": (_T.TIMESTAMPTZ,),
}


@dataclass(frozen=True)
class _Reader:
    """From sqlglot's tree to ours, which has what is allowed and nothing else."""

    text: str

    def condition(self, node: exp.Expression, depth: int) -> Node:
        if depth > DEEPEST:
            raise ConfigError(
                f"--where {shown(self.text)} nests deeper than {DEEPEST}; say it in fewer steps"
            )
        node = _bare(node)
        if isinstance(node, exp.And | exp.Or):
            inner = tuple(self.condition(one, depth + 1) for one in _chain(node))
            return Junction(isinstance(node, exp.And), inner)
        if isinstance(node, exp.Not):
            return Not(self.condition(node.this, depth + 1))
        if isinstance(node, exp.Is):
            return self._is(node, depth)
        leaf = self._leaf(node)
        if not any(True for _ in names(leaf)):
            raise ConfigError(
                f"--where: {_sql(node)} compares no key or column; a name stands bare or in double "
                "quotes, a text in single quotes"
            )
        return leaf

    def _leaf(self, node: exp.Expression) -> Node:
        if type(node) in _COMPARISONS:
            left, right = self._operand(node.this), self._operand(node.expression)
            return Compare(_COMPARISONS[type(node)], left, right)
        if isinstance(node, exp.Between):
            return self._between(node)
        if isinstance(node, exp.In):
            return self._in(node)
        if isinstance(node, exp.Escape | exp.Like | exp.ILike):
            return self._like(node)
        if isinstance(node, exp.Column | exp.Cast | exp.Boolean):
            return IsTrue(self._operand(node))
        raise self._refusal(node)

    def _is(self, node: exp.Is, depth: int) -> Node:
        value = node.expression
        if not isinstance(value, exp.Null | exp.Boolean):
            raise self._refusal(node)
        wanted = None if isinstance(value, exp.Null) else bool(value.this)
        inner = _bare(node.this)
        if wanted is None and isinstance(inner, exp.Column | exp.Cast):
            return IsNull(self._named(inner))
        return Is(self.condition(inner, depth + 1), wanted)

    def _between(self, node: exp.Between) -> Node:
        if node.args.get("symmetric"):
            raise self._refusal(node)
        operand = self._operand(node.this)
        low, high = self._operand(node.args["low"]), self._operand(node.args["high"])
        return Junction(
            every=True,
            conditions=(Compare(">=", operand, low, bounded=True), Compare("<=", operand, high)),
        )

    def _in(self, node: exp.In) -> Node:
        if set(node.args) - {"this", "expressions"} and any(
            node.args.get(other) for other in ("query", "unnest", "field", "is_global")
        ):
            raise self._refusal(node)
        values = [self._operand(item) for item in node.expressions]
        if not values:
            raise self._refusal(node)
        operand = self._operand(node.this)
        if isinstance(operand, Literal) or not all(isinstance(v, Literal) for v in values):
            return Junction(
                every=False, conditions=tuple(Compare("=", operand, value) for value in values)
            )
        return Among(operand, tuple(v.value for v in values if isinstance(v, Literal)))

    def _like(self, node: exp.Expression) -> Node:
        escape = None
        if isinstance(node, exp.Escape):
            escape, node = self._operand(node.expression), node.this
        if not isinstance(node, exp.Like | exp.ILike):
            raise self._refusal(node)
        pattern = self._operand(node.expression)
        text = pattern.value if isinstance(pattern, Literal) else None
        sign = escape.value if isinstance(escape, Literal) else "" if escape is None else None
        if not isinstance(text, str) or not isinstance(sign, str) or len(sign) > 1:
            raise ConfigError(
                f"--where: {_sql(node)} needs a pattern in single quotes, and for ESCAPE one sign"
            )
        ignores_case = isinstance(node, exp.ILike)
        found = Like(self._named(node.this), _pattern(text, sign), ignores_case)
        return Not(found) if node.args.get("negate") else found

    def _named(self, node: exp.Expression) -> Name | Cast:
        operand = self._operand(node)
        if isinstance(operand, Literal):
            raise ConfigError(
                f"--where: {_sql(node)} is no key or column; a name stands bare or in double quotes"
            )
        return operand

    def _operand(self, node: exp.Expression) -> Operand:
        signs = casts = 0
        kinds: list[str] = []
        node = _bare(node)
        while isinstance(node, exp.Neg) and signs < DEEPEST:
            node, signs = _bare(node.this), signs + 1
        while isinstance(node, exp.Cast) and not signs and casts < DEEPEST:
            kinds.append(self._kind(node))
            node, casts = _bare(node.this), casts + 1
        found = self._simple(node, negative=signs % 2 == 1, signed=signs > 0)
        for kind in reversed(kinds):
            if isinstance(found, Literal):
                found = Literal(cast(found.value, kind))
            else:
                found = Cast(found, kind)
        return found

    def _simple(self, node: exp.Expression, *, negative: bool, signed: bool) -> Operand:
        if isinstance(node, exp.Literal) and not node.is_string:
            number = number_of(str(node.this))
            return Literal(-number if negative else number)
        if signed:
            raise self._refusal(node)
        if isinstance(node, exp.Literal):
            return Literal(str(node.this))
        if isinstance(node, exp.Boolean):
            return Literal(bool(node.this))
        if isinstance(node, exp.Null):
            return Literal(None)
        if isinstance(node, exp.Column) and all(
            isinstance(part, exp.Identifier) for part in node.parts
        ):
            quoted = any(part.args.get("quoted") for part in node.parts)
            return Name(".".join(part.name for part in node.parts), quoted)
        raise self._refusal(node)

    def _kind(self, node: exp.Cast) -> str:
        to = node.to
        if type(node) is exp.Cast and isinstance(to, exp.DataType) and not to.expressions:
            for kind, types in _KINDS.items():
                if to.this in types and not node.args.get("format"):
                    return kind
        raise ConfigError(
            f"--where: {_sql(node)} casts to an unknown type; known: INTEGER, BIGINT, DOUBLE, "
            "VARCHAR, BOOLEAN, DATE, TIMESTAMP, TIMESTAMPTZ"
        )

    def _refusal(self, node: exp.Expression) -> ConfigError:
        if type(node) in _COMPARISONS:
            return ConfigError(
                f"--where: {_sql(node)} stands beside another comparison; join them with AND, or "
                "write x BETWEEN a AND b"
            )
        return ConfigError(f"--where: {_sql(node)} is not allowed; {ALLOWED}")


def _bare(node: exp.Expression) -> exp.Expression:
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def _chain(node: exp.And | exp.Or) -> list[exp.Expression]:
    """Return what is joined by one AND or OR after the other, which sqlglot nests to the left."""
    found: list[exp.Expression] = []
    left: exp.Expression = node
    while type(left) is type(node):
        found.append(left.expression)
        left = left.this
    return [left, *reversed(found)]


def _pattern(text: str, escape: str) -> tuple[str | None, ...]:
    found: list[str | None] = []
    signs = iter(text)
    for sign in signs:
        if escape and sign == escape:
            following = next(signs, None)
            if following is None:
                raise ConfigError(f"--where: the pattern {shown(text)} ends with its escape sign")
            found.append(following)
        else:
            found.append({"%": None, "_": ""}.get(sign, sign))
    return tuple(found)


def _sql(node: exp.Expression) -> str:
    """Return a piece of the text for a message; a deep one by its kind alone."""
    if sum(1 for _ in zip(node.walk(), range(_PARTS_SHOWN), strict=False)) == _PARTS_SHOWN:
        return f"a {type(node).__name__.upper()} of many parts"
    try:
        return shown(" ".join(node.sql("duckdb", comments=False).split())).strip("'\"")
    except (RecursionError, SqlglotError, ValueError):
        return f"a {type(node).__name__.upper()}"
