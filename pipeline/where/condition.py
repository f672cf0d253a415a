"""`--where`: a condition in SQL over partition keys and columns.

    dt >= '2026-11-20' AND "group" IN ('tile', 'hazelnut') AND exposure_us < 900

Names are the hive keys of the path, `group`, `path`, and columns of the table, bare or in double
quotes, in their own case or, if that is none, in any; a key hides a column of its name. Text stands
in single quotes. Semantics are SQL's, nulls included: a row is kept where the condition is true,
and not where it is null. The text is parsed by sqlglot (`where.sql`), and never evaluated as code.

A key is text, which beside a number, a date, a time or a truth value is read as one. What hangs on
columns is handed to Arrow (`where.arrow`), which knows from a footer's statistics that a row group
has no such row. NaN is more than any number, as in DuckDB and PostgreSQL. A time without a zone is
in UTC.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.config import nearest
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.storage.folder import NULL_PARTITION
from patchlake.pipeline.where import arrow as where_arrow
from patchlake.pipeline.where import keys as where_keys
from patchlake.pipeline.where import tree as where_tree
from patchlake.pipeline.where.keys import Keys
from patchlake.pipeline.where.values import shown


@dataclass(frozen=True)
class Where:
    """A condition. Build it with `parse_where`; what it was parsed to is not pickled with it."""

    text: str

    @property
    def _tree(self) -> where_tree.Node:
        return _parsed(self.text)

    def judge(self, keys: Keys) -> bool | None:
        """Return whether it holds for all rows, for none, or (None) hangs on names beyond `keys`.

        Args:
            keys: Names with one value; that of a null partition is null.

        Raises:
            ConfigError: if a number, date or the like is compared with a key that is none.
        """
        return where_keys.decide(self._tree, keys)

    def __call__(self, keys: Keys) -> bool:
        """Return whether it holds, where nothing but keys is allowed. Raises `ConfigError`."""
        self.require_names(keys)
        holds = self.judge(keys)
        assert holds is not None
        return holds

    def require_names(self, known: Iterable[str], what: str = "partition key") -> None:
        """Raise `ConfigError` for a name that is none of those known."""
        names = list(known)
        for name in where_tree.names(self._tree):
            if where_keys.match(name, names) is None:
                note = "; a text is written in single quotes" if name.quoted else ""
                near = nearest(name.text[:100], names)
                raise ConfigError(f"--where: {shown(name.text)} is no {what}{near}{note}")

    def names(self) -> list[str]:
        """Return the names in it, as they are written."""
        return list(dict.fromkeys(name.text for name in where_tree.names(self._tree)))

    def columns(self, keys: Keys, schema: pa.Schema | None = None) -> list[str]:
        """Return the columns that it hangs on; with a schema, as they are called there.

        Raises:
            ConfigError: if the schema has no such column.
        """
        beyond = [n for n in where_tree.names(self._tree) if where_keys.key_of(n, keys) is None]
        if schema is None:
            return list(dict.fromkeys(name.text for name in beyond))
        found = (where_arrow.column_of(name, keys, schema, "the table") for name in beyond)
        return list(dict.fromkeys(found))

    def completed(self, keys: Keys, schema: pa.Schema) -> Keys:
        """Return the keys with those names that a file has not at all, as null.

        Other files of its table may have them: a column that was added later is null before.
        """
        return {**keys, **dict.fromkeys(self.absent(keys, schema, ""), NULL_PARTITION)}

    def absent(self, keys: Keys, schema: pa.Schema, file: str) -> dict[str, str]:
        """Return the names that are neither key nor column of a file, each with what to say."""
        faults = {}
        for name in where_tree.names(self._tree):
            if where_keys.key_of(name, keys) is None and not where_arrow.is_column(name, schema):
                faults[name.text] = str(where_arrow.no_column(name, keys, schema, file))
        return faults

    def expression(self, keys: Keys, schema: pa.Schema, file: str) -> pc.Expression:
        """Return what Arrow evaluates for each row of a file; null is not kept.

        Args:
            keys: Names that have one value in the whole file.
            schema: The file's columns.
            file: For the message.

        Raises:
            ConfigError: if a name is neither, or types do not go together.
        """
        return self._checked(keys, schema, file, for_statistics=False)

    def for_statistics(self, keys: Keys, schema: pa.Schema, file: str) -> pc.Expression:
        """Return what Arrow rules row groups out with: it may hold of rows that are not kept.

        Raises:
            ConfigError: as `expression`.
        """
        self._checked(keys, schema, file, for_statistics=False)
        return self._checked(keys, schema, file, for_statistics=True)

    def _checked(
        self, keys: Keys, schema: pa.Schema, file: str, *, for_statistics: bool
    ) -> pc.Expression:
        expression = where_arrow.expression_of(
            self._tree, keys, schema, file, for_statistics=for_statistics
        )
        try:
            ds.dataset(schema.empty_table()).scanner(filter=expression)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            first = str(error).partition("\n")[0]
            raise ConfigError(f"--where {shown(self.text)} does not fit {file}: {first}") from None
        return expression


def parse_where(text: str) -> Where:
    """Return the condition of a text. Raises `ConfigError` on anything outside the grammar."""
    _parsed(text)
    return Where(text)


def read_where(text: str | None) -> Where | None:
    """Return the condition of an option that may be absent. Raises as `parse_where`."""
    return None if text is None else parse_where(text)


def _parsed(text: str) -> where_tree.Node:
    # The parser takes a quarter of a second to import, and most commands have no condition.
    from patchlake.pipeline.where import sql

    return sql.parse(text)
