"""What is known of a `--where` by keys alone: a tree folded in SQL's three-valued logic.

"Not true" is two things in SQL, false and null, and NOT tells them apart. So a tree is never asked
for its value but whether it is *certainly true* or *certainly false*, two questions with plain
answers that NOT exchanges; null is when neither is.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol, TypeVar

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.where.tree import (
    Among,
    Cast,
    Compare,
    Is,
    IsNull,
    IsTrue,
    Junction,
    Leaf,
    Like,
    Literal,
    Name,
    Node,
    Not,
    Operand,
)
from patchlake.pipeline.where.values import OPPOSITE, Value, cast, compare, truth_of

# How Hive, Spark, DuckDB and pyarrow write the folder of rows whose key is null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

Keys = Mapping[str, Value]
V = TypeVar("V")


class Algebra(Protocol[V]):
    """What a tree is folded into."""

    def leaf(self, node: Leaf, want: bool) -> V:
        """Return whether a leaf is certainly true, or certainly false."""

    def join(self, every: bool, parts: Iterable[V]) -> V:
        """Return whether every, or any, of some parts holds."""

    def invert(self, part: V) -> V:
        """Return the opposite of an answer, which is never null."""


def fold(node: Node, want: bool, algebra: Algebra[V]) -> V:
    """Return whether a tree is certainly true, or certainly false if `want` is false."""
    if isinstance(node, Not):
        return fold(node.condition, not want, algebra)
    if isinstance(node, Junction):
        parts = (fold(one, want, algebra) for one in node.conditions)
        return algebra.join(node.every == want, parts)
    if isinstance(node, Is):
        return _fold_is(node, want, algebra)
    return algebra.leaf(node, want)


def _fold_is(node: Is, want: bool, algebra: Algebra[V]) -> V:
    if node.value is not None:
        found = fold(node.condition, node.value, algebra)
        return found if want else algebra.invert(found)
    either = (fold(node.condition, value, algebra) for value in (True, False))
    decided = algebra.join(False, either)
    return algebra.invert(decided) if want else decided


class UnknownNameError(Exception):
    """A name is none of the keys."""


class ByKeys:
    """Folds a tree into True, False, or None where that hangs on names beyond the keys."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def leaf(self, node: Leaf, want: bool) -> bool | None:
        """Return the answer for a leaf. Raises `ConfigError` if a key is not what it is beside."""
        try:
            return self._leaf(node, want)
        except UnknownNameError:
            return None

    def join(self, every: bool, parts: Iterable[bool | None]) -> bool | None:
        """Return the joined answer, as soon as it is known."""
        unknown = False
        for part in parts:
            if part is None:
                unknown = True
            elif part is not every:
                return not every
        return None if unknown else every

    def invert(self, part: bool | None) -> bool | None:
        """Return the opposite."""
        return None if part is None else not part

    def value(self, operand: Operand) -> Value:
        """Return the value of an operand. Raises `UnknownNameError` for a column."""
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Cast):
            return cast(self.value(operand.operand), operand.kind)
        key = key_of(operand, self._keys)
        if key is None:
            raise UnknownNameError
        text = self._keys[key]
        return None if text == NULL_PARTITION else text

    def _leaf(self, node: Leaf, want: bool) -> bool:
        if isinstance(node, Compare):
            left, right = self.value(node.left), self.value(node.right)
            comparison = node.comparison if want else OPPOSITE[node.comparison]
            return compare(comparison, left, right) is True
        value = self.value(node.operand)
        if isinstance(node, IsNull):
            return (value is None) == want
        if value is None:
            return False
        if isinstance(node, Among):
            return is_among(value, node.values, want)
        if isinstance(node, Like):
            return like(node, _as_text(value)) == want
        assert isinstance(node, IsTrue)
        return (truth_of(value) if isinstance(value, str) else bool(value)) == want


def key_of(name: Name, keys: Keys) -> str | None:
    """Return the key that a name means: of its exact spelling, else of any case; None if none.

    Raises:
        ConfigError: if two keys differ in case alone.
    """
    return match(name, keys)


def match(name: Name, known: Iterable[str]) -> str | None:
    """Return which of the known names is meant. Raises `ConfigError` if it could be several."""
    names = known if isinstance(known, Mapping) else list(known)
    if name.text in names:
        return name.text
    lower = name.text.lower()
    alike = [one for one in names if one.lower() == lower]
    if len(alike) > 1:
        raise ConfigError(
            f"--where: '{name.text}' may mean any of {', '.join(sorted(alike))}; write it as it is"
        )
    return alike[0] if alike else None


@lru_cache(16)
def _texts(values: tuple[Value, ...]) -> frozenset[Value] | None:
    """Return values that are all texts or null as a set: of 10,000 each is looked up at once."""
    return frozenset(values) if all(isinstance(v, str | None) for v in values) else None


def is_among(value: Value, values: tuple[Value, ...], want: bool) -> bool:
    """Return whether a value, not null, is certainly in a list, or certainly not."""
    texts = _texts(values) if isinstance(value, str) else None
    if texts is not None:
        found: bool | None = value in texts
    else:
        found = any(compare("=", value, one) for one in values)
    return bool(found) if want else not found and None not in values


def like(node: Like, text: str) -> bool:
    """Return whether a text is as a pattern says. Linear in both, for any number of %."""
    signs = node.pattern
    if node.ignores_case:
        text = text.lower()
        signs = tuple(None if sign is None else sign.lower() for sign in signs)
    # The last % is widened by one sign wherever the rest does not fit: never back to an earlier.
    at = place = 0
    star, resumed = -1, 0
    while at < len(text):
        if place < len(signs) and signs[place] is None:
            star, resumed, place = place, at, place + 1
        elif place < len(signs) and signs[place] in ("", text[at]):
            at, place = at + 1, place + 1
        elif star >= 0:
            resumed += 1
            at, place = resumed, star + 1
        else:
            return False
    return all(sign is None for sign in signs[place:])


def _as_text(value: Value) -> str:
    found = cast(value, "text")
    assert isinstance(found, str)
    return found


def decide(node: Node, keys: Keys) -> bool | None:
    """Return whether a tree is true for all rows, for none, or (None) hangs on columns."""
    return fold(node, True, ByKeys(keys))
