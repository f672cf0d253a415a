"""The tree of a `--where`: what `where.sql` makes of its text, and what is asked of it."""

from collections.abc import Iterator
from dataclasses import dataclass

from patchlake.pipeline.where.values import Value


@dataclass(frozen=True)
class Name:
    """A key or a column, as it is written; `quoted` in double quotes."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Literal:
    """A value; None is NULL."""

    value: Value


@dataclass(frozen=True)
class Cast:
    """A name cast to one of `where.values.KINDS`."""

    operand: "Name | Cast"
    kind: str


Operand = Name | Literal | Cast


@dataclass(frozen=True)
class Compare:
    """One of `where.values.COMPARISONS`."""

    comparison: str
    left: Operand
    right: Operand
    # It is the lower bound of a BETWEEN, which has an upper one beside it.
    bounded: bool = False


@dataclass(frozen=True)
class Among:
    """IN, of literals alone."""

    operand: Name | Cast
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Like:
    """LIKE or ILIKE. Of the pattern, `None` is %, an empty text _, and anything else is itself."""

    operand: Name | Cast
    pattern: tuple[str | None, ...]
    ignores_case: bool = False


@dataclass(frozen=True)
class IsNull:
    """A value is null."""

    operand: Name | Cast


@dataclass(frozen=True)
class IsTrue:
    """A value is true: a boolean as a condition."""

    operand: Operand


@dataclass(frozen=True)
class Is:
    """A condition is true, false, or (None) null."""

    condition: "Node"
    value: bool | None


@dataclass(frozen=True)
class Not:
    """The opposite; of null, null."""

    condition: "Node"


@dataclass(frozen=True)
class Junction:
    """AND if `every`, else OR."""

    every: bool
    conditions: tuple["Node", ...]


Leaf = Compare | Among | Like | IsNull | IsTrue
Node = Leaf | Is | Not | Junction


def names(node: Node) -> Iterator[Name]:
    """Yield the names in a tree, in order."""
    if isinstance(node, Junction):
        for condition in node.conditions:
            yield from names(condition)
    elif isinstance(node, Not | Is):
        yield from names(node.condition)
    else:
        sides = [node.left, node.right] if isinstance(node, Compare) else [node.operand]
        for side in sides:
            found = side
            while isinstance(found, Cast):
                found = found.operand
            if isinstance(found, Name):
                yield found
