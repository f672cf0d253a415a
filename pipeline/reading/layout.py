"""Where our columns are in somebody else's file: in a column, a field of a struct, or its path.

A folder `key=value` of the path supplies the column `key` to all rows of the file, as Spark,
DuckDB, Delta, pandas and polars write partitions. A struct of `bytes` and `path`, as datasets of
Hugging Face keep an image, is read as it is: `path` names the image where no column does, and is
where it is if `bytes` is null. A split that neither column nor key tells may be the name of the
file or of a folder.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import pyarrow as pa

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import TableError
from patchlake.pipeline.storage.folder import NULL_PARTITION, unescape
from patchlake.pipeline.tables import has_text, is_binary, is_text, type_of


@dataclass(frozen=True)
class ColumnPlace:
    """Where a column is: in a column of the file, in the path, in both, or nowhere."""

    # What the settings call it.
    name: str
    # The column or field of the file; None if it has none.
    column: str | None = None
    # What the path says, decoded: (value,), where None is a null partition; () if it says nothing.
    key: tuple[()] | tuple[str | None] = ()

    @property
    def is_somewhere(self) -> bool:
        """Return whether the file or its path has it."""
        return self.column is not None or bool(self.key)


@dataclass(frozen=True)
class Layout:
    """Where the columns of one file are."""

    schema: pa.Schema
    columns: ColumnSettings
    # The file relative to IMAGES, and in full, for messages.
    path: str
    where: str

    def place(self, name: str) -> ColumnPlace:
        """Return where a column of theirs is.

        Raises:
            TableError: if the file or its path has it twice.
        """
        if self.schema.names.count(name) > 1:
            raise TableError(
                f"{self.where} has the column '{name}' twice; give them different names"
            )
        kind, key = type_of(self.schema, name), self._key(name)
        # A column of nulls without a type says nothing against the path.
        is_absent = kind is None or (bool(key) and pa.types.is_null(kind))
        return ColumnPlace(name, None if is_absent else name, key)

    def ours(self, name: str) -> ColumnPlace:
        """Return where a column of ours is. Raises `TableError` as `place`, and for near misses.

        A column that is called otherwise but for capitals and spaces is not passed over.
        """
        theirs = str(getattr(self.columns, name, name))
        found = self.place(theirs)
        if name not in ColumnSettings.model_fields:
            # Nobody can map it, so that it must not stop anybody.
            kind = self.type(found)
            return found if kind is not None and has_text(kind) else ColumnPlace(theirs)
        if name == "image" and self.struct:
            return ColumnPlace(theirs, f"{self.struct}.bytes")
        if name == "part_id" and name not in self.columns.renamed:
            # Tables of before it meant anything may have something else of that name.
            kind = self.type(found)
            is_name = kind is None or (has_text(kind) and not _is_measure(kind))
            return found if is_name else ColumnPlace(theirs, None, found.key)
        if name in _BINARY:
            # A picture is not in a path.
            found = ColumnPlace(theirs, found.column)
        if name == "uri" and not self._names_files(found) and self.ours("image").column:
            # Something else of that name, which the images beside it need not.
            return ColumnPlace(theirs)
        if not found.is_somewhere and not (name == "uri" and self.ours("image").column):
            self._refuse_near(theirs, name)
        if name == "split" and not found.is_somewhere and theirs:
            return ColumnPlace(theirs, None, self._split)
        return found

    def absent(self, names: Collection[str]) -> dict[str, str]:
        """Return those of our columns that the settings call otherwise and the file lacks.

        Args:
            names: Our names of those to look for.

        Returns:
            The setting -> what to say if no other file has such a column either.
        """
        found = {}
        for name in set(names) & self.columns.renamed.keys():
            theirs = self.columns.renamed[name]
            if not self.ours(name).is_somewhere:
                found[f"columns.{name}"] = (
                    f"columns.{name} is '{theirs}', and no file has such a column: {self.where} "
                    f"has {', '.join(self.schema.names)}; name one of them, or leave the setting "
                    "out"
                )
        return found

    def type(self, place: ColumnPlace) -> pa.DataType | None:
        """Return the type of the file's column; None if it has none."""
        return None if place.column is None else type_of(self.schema, place.column)

    @cached_property
    def struct(self) -> str:
        """The struct of `bytes` and `path` that the image is a field of, or ""."""
        image = self.columns.image
        for struct in (image, image.removesuffix(".bytes")):
            kind, inner = type_of(self.schema, struct), type_of(self.schema, f"{struct}.bytes")
            if kind is not None and pa.types.is_struct(kind) and inner and is_binary(inner):
                return struct
        return ""

    @property
    def image_path(self) -> str | None:
        """The field that names the image in its struct; None if there is none."""
        name = f"{self.struct}.path"
        kind = type_of(self.schema, name) if self.struct else None
        return name if kind is not None and is_text(kind) else None

    def _names_files(self, place: ColumnPlace) -> bool:
        kind = self.type(place)
        return kind is None or is_text(kind) or pa.types.is_null(kind)

    def _key(self, name: str) -> tuple[()] | tuple[str | None]:
        values = set(self._keys.get(name, ()))
        if len(values) > 1:
            raise TableError(
                f"{self.where}: the path says '{name}' twice: {sorted(map(str, values))}; "
                "keep one of the folders"
            )
        return (values.pop(),) if values else ()

    @cached_property
    def _keys(self) -> Mapping[str, list[str | None]]:
        found: dict[str, list[str | None]] = {}
        for part in PurePosixPath(self.path).parts[:-1]:
            key, equals, value = part.partition("=")
            if equals:
                text = None if value == NULL_PARTITION else unescape(value)
                found.setdefault(unescape(key), []).append(text)
        return found

    @cached_property
    def _split(self) -> tuple[()] | tuple[str]:
        """Return the split that the file's name or a folder of it is, where it is nothing else.

        `data/test-00000-of-00001.parquet`, `test.parquet` and `test/0.parquet`, as Hugging Face
        lays out data sets whose rows do not say it.
        """
        words = {*self.columns.test_splits, *self.columns.train_splits}
        known = {word.strip().casefold() for word in words}
        *folders, name = PurePosixPath(self.path).parts
        found = [part for part in [*folders, _SHARD.sub("", name)] if part.casefold() in known]
        if len({part.casefold() for part in found}) > 1:
            raise TableError(
                f"{self.where}: its path says the split {' and '.join(map(repr, found))}; name one "
                f"folder otherwise, or add a column {self.columns.split}"
            )
        return (found[0],) if found else ()

    def _refuse_near(self, theirs: str, name: str) -> None:
        folded = theirs.strip().casefold()
        for near in (*self.schema.names, *self._keys):
            if near.strip().casefold() == folded:
                raise TableError(
                    f"{self.where} has '{near}' and no '{theirs}' ({name}); if it is that, say "
                    f"--set columns.{name}='{near}'; if there is none, --set columns.{name}=''"
                )


def _is_measure(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_floating(kind) or is_binary(kind))


_BINARY = ("image", "mask", "roi")
# What follows the split in a file's name: `-00000-of-00001.parquet`, or the ending alone.
_SHARD = re.compile(r"(-\d+(-of-\d+)?)?(\.[a-z]+)*$", re.IGNORECASE)
