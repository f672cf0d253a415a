"""Columns of a lake's files under our own names, whether the file holds them or its path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import TableError
from patchlake.pipeline.reading.apart import Call, apart
from patchlake.pipeline.reading.columns import fetch_columns, select
from patchlake.pipeline.reading.layout import ColumnPlace, Layout
from patchlake.pipeline.reading.values import agrees, as_text, class_names, column_error, shown
from patchlake.pipeline.storage.folder import Folder, hive_keys, is_hashed
from patchlake.pipeline.tables import IMAGES, ROI, require_columns


def read_named(
    images: Folder, columns: ColumnSettings, path: str, version: str, ours: Sequence[str]
) -> pa.Table:
    """Return columns of a file as text, under our names, all its rows; null where it lacks one.

    Args:
        images: The lake.
        columns: What its columns are called.
        path: The file.
        version: Its version.
        ours: Our names of the columns; one that cannot be mapped (`sha256`) is called that.

    Raises:
        TableError: if a column is no text, or its path says otherwise.
        FileDamaged: if the file cannot be read.
    """
    read = partial(_read_named, images, columns, version, tuple(ours))
    return apart(images, Call(read, path, images.path(path)))


def _read_named(
    images: Folder, columns: ColumnSettings, version: str, ours: tuple[str, ...], path: str
) -> pa.Table:
    with images.open(path, version) as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        reader = RowReader(Layout(file.schema_arrow, columns, path, images.path(path)), tuple(ours))
        reader.require_readable()
        held, rows = reader.names, file.metadata.num_rows
        fetch_columns(handle, file, range(file.num_row_groups), held)
        # Also where the path has all of them: then the rows are what is counted.
        table = select(file.read(columns=held), held) if held else pa.table({})
    return reader.table({name: reader.text(table, name, rows) for name in ours})


def is_of_numbers(rows: pa.Table, name: str) -> bool:
    """Return whether a column of ours is of numbers or truths, to which its file gives no names."""
    return bool(rows.schema.field(name).metadata == _OF_NUMBERS)


_OF_NUMBERS = {b"patchlake": b"of numbers"}


def read_absent(
    images: Folder, columns: ColumnSettings, path: str, version: str, ours: Sequence[str]
) -> dict[str, str]:
    """Return `Layout.absent` of a file. Raises `FileDamaged` if it cannot be read."""
    return apart(images, Call(partial(_read_absent, images, columns, version, ours), path, path))


def _read_absent(
    images: Folder, columns: ColumnSettings, version: str, ours: Sequence[str], path: str
) -> dict[str, str]:
    with images.open(path, version) as handle:
        schema = pq.ParquetFile(handle).schema_arrow
    return Layout(schema, columns, path, images.path(path)).absent(ours)


@dataclass(frozen=True)
class RowReader:
    """Turns rows of one file, as it keeps them, into columns of ours."""

    layout: Layout
    # Our names of what is read.
    ours: tuple[str, ...]
    # Their names of what comes along as it is.
    extra: tuple[str, ...] = ()

    def require_readable(self) -> None:
        """Raise `TableError` if a column of the file is of a type that does not fit."""
        wanted = {
            place.column: _field(name)
            for name, place in self._places.items()
            if place.column is not None
        }
        require_columns(self.layout.schema, wanted, self.layout.where)

    @cached_property
    def _places(self) -> dict[str, ColumnPlace]:
        return {name: self.layout.ours(name) for name in self.ours}

    @cached_property
    def _extra(self) -> dict[str, ColumnPlace]:
        return {name: self.layout.place(name) for name in self.extra}

    @property
    def names(self) -> list[str]:
        """The columns of the file that are read, by their names there."""
        places = [*self._places.values(), *self._extra.values()]
        found = [place.column for place in places if place.column is not None]
        if self._names_image("image_id") or self._names_image("uri"):
            found.append(str(self.layout.image_path))
        return list(dict.fromkeys(found))

    def read(self, table: pa.Table, rows: int) -> pa.Table:
        """Return the columns of ours, and each other as `extra:NAME`.

        Args:
            table: Columns of the file, those of `names` at least.
            rows: How many rows it has; a table without columns does not know.

        Raises:
            TableError: if a value has no meaning, or the path says otherwise.
        """
        found = {}
        for name in self.ours:
            is_bytes = pa.types.is_binary(_field(name).type)
            found[name] = (self._binary if is_bytes else self.text)(table, name, rows)
        for name, place in self._extra.items():
            found[f"extra:{name}"] = self._as_it_is(table, place, rows)
        return self.table(found)

    def table(self, found: Mapping[str, pa.ChunkedArray]) -> pa.Table:
        """Return columns of ours as a table that says which are of numbers (`is_of_numbers`)."""
        fields = [
            pa.field(name, values.type, metadata=_OF_NUMBERS if self._is_number(name) else None)
            for name, values in found.items()
        ]
        return pa.table(list(found.values()), schema=pa.schema(fields))

    def _is_number(self, name: str) -> bool:
        place = self._places.get(name)
        if place is None or place.column is None or class_names(self.layout.schema, place.column):
            return False
        kind = self.layout.type(place)
        if kind is not None and pa.types.is_dictionary(kind):
            kind = kind.value_type
        is_number = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
        return any(is_it(kind) for is_it in is_number)

    def text(self, table: pa.Table, name: str, rows: int) -> pa.ChunkedArray:
        """Return one column of ours as text; null where there is none. Raises as `read`."""
        if name == "group":
            return self._group(table, rows)
        if not self._names_image(name):
            return self._text(table, name, rows)
        named = self._spelled(table, str(self.layout.image_path), name)
        if name == "image_id":
            return named
        held = table.column(str(self.layout.ours("image").column))
        return pc.if_else(held.is_valid(), pa.scalar(None, pa.string()), named)

    def _text(self, table: pa.Table, name: str, rows: int) -> pa.ChunkedArray:
        place = self._places[name]
        if place.column is None:
            return _repeated(place, rows)
        self._require_agreement(place, table.column(place.column), name)
        return self._spelled(table, place.column, name)

    def _spelled(self, table: pa.Table, column: str, name: str) -> pa.ChunkedArray:
        try:
            return as_text(table.column(column), class_names(self.layout.schema, column))
        except ValueError as error:
            if name not in ColumnSettings.model_fields:
                return _repeated(ColumnPlace(name), len(table))
            raise column_error(self.layout.where, column, error, name) from None

    def _group(self, table: pa.Table, rows: int) -> pa.ChunkedArray:
        """Return the group, of the folder `g=` or the setting where no column or key has it."""
        found = self._text(table, "group", rows)
        given = self.layout.columns.one_group
        folder = hive_keys(self.layout.path).get("g")
        if not self._places["group"].is_somewhere and folder is not None and not is_hashed(folder):
            found = _repeated(ColumnPlace("g", None, (folder,)), rows)
        if given is None:
            return found
        others = found.filter(pc.not_equal(found, given))
        if len(others):
            raise TableError(
                f"{self.layout.where} says group {shown(others[0].as_py())}, --group "
                f"(columns.one_group) says {shown(given)}: that is for tables without groups; "
                "take some of them with --where"
            )
        return pc.fill_null(found, given)

    def _binary(self, table: pa.Table, name: str, rows: int) -> pa.ChunkedArray:
        place = self._places[name]
        if place.column is None:
            return pa.chunked_array([pa.nulls(rows, pa.binary())])
        values = table.column(place.column)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        # Of a large one, 64 images may be more than the other can hold.
        return values if pa.types.is_large_binary(values.type) else values.cast(pa.binary())

    def _as_it_is(self, table: pa.Table, place: ColumnPlace, rows: int) -> pa.ChunkedArray:
        if place.column is None:
            return _repeated(place, rows)
        values = table.column(place.column)
        self._require_agreement(place, values, "extra")
        return values

    def _require_agreement(self, place: ColumnPlace, values: pa.ChunkedArray, name: str) -> None:
        """Raise `TableError` where path and column have different values."""
        for text in place.key:
            column = str(place.column)
            try:
                same = agrees(values, text, class_names(self.layout.schema, column))
            except ValueError as error:
                raise column_error(self.layout.where, column, error, name) from None
            if not same:
                said = ", ".join(list(dict.fromkeys(map(shown, values.to_pylist())))[:_NAMED])
                raise TableError(
                    f"{self.layout.where}: the folder says {place.name}={shown(text)}, column "
                    f"'{column}' says {said}; move the file or mend the column"
                )

    def _names_image(self, name: str) -> bool:
        """Return whether a column of ours is the path beside the bytes of an image's struct."""
        if name not in self.ours or name not in ("image_id", "uri"):
            return False
        return self.layout.image_path is not None and not self._places[name].is_somewhere


# Values that a message shows.
_NAMED = 3


def _field(name: str) -> pa.Field:
    if name == ROI.name:
        return ROI
    return IMAGES.field(name) if name in IMAGES.names else pa.field(name, pa.string())


def _repeated(place: ColumnPlace, rows: int) -> pa.ChunkedArray:
    value = place.key[0] if place.key else None
    return pa.chunked_array([pa.repeat(pa.scalar(value, pa.string()), rows)])
