"""Values of somebody else's columns as ours: text as it is written, and one type for one column.

Identifiers, groups, splits and labels are text. A whole number is its digits (7 is `7`, and so is
7.0: pandas makes floats of integers with nulls), a bool `true` or `false`, a date `2026-11-22`,
bytes are UTF-8, and a class label of Hugging Face, which is a number, is the name that the file
gives it. NaN is null.
"""

import json
import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.tables import has_text, is_binary, is_text

_ARROW = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)
# Hugging Face's number of no class.
_NO_CLASS = -1


def as_text(values: pa.ChunkedArray, names: Sequence[str] = ()) -> pa.ChunkedArray:
    """Return values as text.

    Args:
        values: Of a type that `has_text`.
        names: Of the classes, where values are their numbers.

    Raises:
        ValueError: if a value has no spelling, with the value.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        return as_text(values.cast(kind.value_type), names)
    if isinstance(kind, pa.BaseExtensionType):
        return _of_extension(values)
    if pa.types.is_floating(kind):
        values = _whole(values)
        kind = values.type
    if names and pa.types.is_integer(kind):
        return _class_names(values, names)
    try:
        text = values.cast(pa.string())
        # Of a damaged page, or a careless writer: Arrow takes a writer's word for it.
        text.validate(full=True)
    except _ARROW as error:
        raise ValueError(f"bytes that are no UTF-8 text ({error})") from None
    return text


def class_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of a column's classes that Hugging Face keeps in a footer; none if none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for part in [column] if column in found else column.split("."):
            found = found[part]
        names = found["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


def agrees(values: pa.ChunkedArray, text: str | None, names: Sequence[str] = ()) -> bool:
    """Return whether all values of a column are what its path says, as the column's type reads it.

    A path's `07` is the number 7, and `2026-11-22` a date, where the column holds such.

    Raises:
        ValueError: as `as_text`.
    """
    if text is None:
        return bool(values.null_count == len(values))
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    typed = _typed(text, values.type)
    if not has_text(values.type):
        return typed is not None and _is_all(values, typed[0])
    spelled = as_text(values, names)
    return _is_all(spelled, pa.scalar(text)) or (
        typed is not None and not is_binary(values.type) and _is_all(spelled, as_text(typed)[0])
    )


def _typed(text: str, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return a path's value as one of a column's type; None if it is none."""
    try:
        return pa.chunked_array([pa.array([text]).cast(kind)])
    except _ARROW:
        return None


def _is_all(values: pa.ChunkedArray, one: pa.Scalar) -> bool:
    try:
        same = pc.fill_null(pc.equal(values, one), fill_value=False)
    except _ARROW:
        return False
    return bool(pc.all(same, min_count=0).as_py())


def unified(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """Return the type for a column that files keep in several: the wider one, else text.

    Raises:
        ValueError: if there is none, as of a list and a number.
    """
    plain = list(dict.fromkeys(map(_plain, kinds)))
    found = [kind for kind in plain if not pa.types.is_null(kind)]
    if not found:
        return pa.string()
    try:
        fields = [pa.schema([("column", kind)]) for kind in found]
        return pa.unify_schemas(fields, promote_options="permissive").field("column").type
    except _ARROW:
        if any(pa.types.is_nested(kind) for kind in found):
            raise ValueError(f"of types {', '.join(map(str, found))}") from None
        return pa.string()


def converted(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return values as the type that `unified` found. Raises `ValueError` if one does not fit."""
    try:
        values.validate(full=True)
        if kind == pa.string() and has_text(values.type) and not pa.types.is_floating(values.type):
            return as_text(values)
        return values.cast(kind)
    except _ARROW as error:
        raise ValueError(str(error)) from None


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if is_text(kind):
        return pa.string()
    return pa.binary() if is_binary(kind) and not pa.types.is_null(kind) else kind


def _of_extension(values: pa.ChunkedArray) -> pa.ChunkedArray:
    is_uuid = values.type == pa.uuid()
    storage = pa.chunked_array([c.storage for c in values.chunks], values.type.storage_type)
    if not is_uuid:
        return as_text(storage)
    texts = [None if cell is None else str(uuid.UUID(bytes=cell)) for cell in storage.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _whole(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats as integers."""
    values = values.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    try:
        return values.cast(pa.int64())
    except _ARROW:
        odd = next(v for v in values.to_pylist() if v is not None and not _is_whole(v))
        raise ValueError(
            f"{odd}, which is not a whole number and may be spelled in several ways"
        ) from None


def _is_whole(value: float) -> bool:
    return value == value // 1 and abs(value) < 2**53


def _class_names(values: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    numbers = values.cast(pa.int64())
    numbers = pc.if_else(pc.equal(numbers, _NO_CLASS), None, numbers)
    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(names):
        odd = bounds["min"] if bounds["min"] < 0 else bounds["max"]
        raise ValueError(f"{odd}, which is no class: the file names {len(names)} of them")
    known = pa.array(names, pa.string())
    return pa.chunked_array([known.take(c) for c in numbers.chunks], pa.string())


def column_error(where: str, column: str, what: object, setting: str) -> TableError:
    """Return the error of a column that cannot be read as the setting means it."""
    return TableError(
        f"{where}: column '{column}' has {what}; map another with --set columns.{setting}=NAME"
    )


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, and not all of a long one."""
    text = "null" if value is None else ascii(value) if _has_controls(value) else f"'{value}'"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}... ({len(text) - 2} characters)"


def _has_controls(value: object) -> bool:
    return not str(value).isprintable()


# Of a value in a message.
_SHOWN = 100
