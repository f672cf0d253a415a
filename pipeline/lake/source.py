"""source: the rows of a lake under our own column names, and their images."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings, ImageSettings
from patchlake.pipeline.errors import FileDamaged, InputChanged
from patchlake.pipeline.images.geometry import Geometries, Geometry
from patchlake.pipeline.reading.apart import Call, apart, each
from patchlake.pipeline.reading.columns import fetch_columns
from patchlake.pipeline.reading.fragments import Fragment, keys_of
from patchlake.pipeline.reading.layout import Layout
from patchlake.pipeline.reading.named import RowReader
from patchlake.pipeline.reading.rows import group_rows, opened_for
from patchlake.pipeline.reading.values import column_error, converted
from patchlake.pipeline.storage.fetch import fetch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.where.arrow import rows_kept
from patchlake.pipeline.where.condition import Where
from patchlake.pipeline.where.keys import Keys

_NOTHING = pa.schema([])
# Fragments whose names are held at a time: some 6 MB of 256 rows each.
_HELD = 256
_LOOKED_AT_ONCE = 16

# Our names of what is read, by what for.
_WHO = ("image_id", "group")
_PART = ("part_id",)
_IMAGE = ("image", "uri")
_LABELS = ("split", "label")


@dataclass(frozen=True)
class Source:
    """Where images are and how they are read."""

    images: Folder
    columns: ColumnSettings
    limits: ImageSettings
    geometry: Geometry | Geometries
    # Rows in which it does not hold are left out.
    where: Where | None = None
    # Whether split and label are read: who scores needs neither, whatever they are.
    labelled: bool = True
    # Columns that are passed through, with the type that they have in all files of the table.
    extra: pa.Schema = _NOTHING

    def read(self, fragment: Fragment, *, mask: bool = False, roi: bool = False) -> pa.Table:
        """Return a fragment's rows under our own column names, with `source_row`.

        Args:
            fragment: The fragment.
            mask: Whether masks of defects are read, too.
            roi: Whether masks of what counts are.

        Null where neither the file nor its path has a column.

        Raises:
            InputChanged: if the file is not the one that was planned, or gone.
            FileDamaged: if it cannot be read.
            TableError: if a column cannot be read as ours, or the path says otherwise.
        """
        labels = _LABELS if self.labelled else ()
        masks = [name for name, is_wanted in (("mask", mask), ("roi", roi)) if is_wanted]
        ours = (*_WHO, *_PART, *_IMAGE, *labels, *masks)
        return self._checked(fragment, ours)

    def read_names(self, fragment: Fragment) -> pa.Table:
        """Return the same without images, masks and URIs: who the rows are of. Raises as `read`."""
        return self._checked(fragment, (*_WHO, *_LABELS))

    def each_names(self, fragments: Iterable[Fragment]) -> Iterator[pa.Table]:
        """Yield what `read_names` returns of each, in order. Raises as `read`.

        One process reads several at once. The rows of 256 fragments are held at a time.
        """
        left = iter(fragments)
        while some := list(islice(left, _HELD)):
            with self._unchanged(some):
                calls = [self._call(one, (*_WHO, *_LABELS)) for one in some]
                named = [_sound(found) for found in each(self.images, calls)]
            yield from named

    def _checked(self, fragment: Fragment, ours: tuple[str, ...]) -> pa.Table:
        with self._unchanged([fragment]):
            return apart(self.images, self._call(fragment, ours))

    def _call(self, fragment: Fragment, ours: tuple[str, ...]) -> Call[Fragment, pa.Table]:
        return Call(partial(self._read, ours=ours), fragment, self.images.path(fragment.path))

    @contextmanager
    def _unchanged(self, fragments: Sequence[Fragment]) -> Iterator[None]:
        """Raise `InputChanged` if a file is not what was planned, after the block has read it."""
        try:
            yield
        except Exception:
            # Of a file that was replaced by another, this says more than what it made of it.
            self._require_unchanged(fragments)
            raise
        # After reading, so that a file which is replaced meanwhile does not pass either.
        if not self.images.pins_versions:
            self._require_unchanged(fragments)

    def _require_unchanged(self, fragments: Sequence[Fragment]) -> None:
        """Look at each file once, several at the same time: a store answers in tens of ms."""
        files = dict.fromkeys((one.path, one.version) for one in fragments)
        if len(files) == 1:
            self._require_version(*next(iter(files)))
            return
        with ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
            list(pool.map(self._require_version, *zip(*files, strict=True)))

    def _require_version(self, path: str, planned: str) -> None:
        where = self.images.path(path)
        try:
            version = self.images.entry(path).version
        except FileNotFoundError:
            raise InputChanged(f"{where} vanished since it was planned") from None
        if version != planned:
            raise InputChanged(
                f"{where} changed since it was planned: its version was {planned}, and is "
                f"{version}; the same command plans it again"
            )

    def _read(self, fragment: Fragment, ours: tuple[str, ...]) -> pa.Table:
        where = self.images.path(fragment.path)
        with self.images.open(fragment.path, fragment.version) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            layout = Layout(file.schema_arrow, self.columns, fragment.path, where)
            reader = RowReader(layout, ours, tuple(self.extra.names))
            reader.require_readable()
            asked = self._asked(fragment, file.schema_arrow)
            wanted = [*reader.names, *asked]
            fetch_columns(handle, file, fragment.row_groups, wanted)
            file = opened_for(handle, file, fragment.row_groups, wanted)
            pieces = list(group_rows(file, fragment, reader, asked))
        numbers = pa.chunked_array([numbers for numbers, _, _ in pieces], pa.int64())
        if len(numbers) != fragment.images:
            raise FileDamaged(
                f"{where} has {len(numbers)} of the {fragment.images} rows that were planned for "
                f"group '{fragment.group}'; it changed since: start again"
            )
        rows = pa.concat_tables([rows for _, rows, _ in pieces]).append_column(
            "source_row", numbers
        )
        verdict, keys = self._judged(fragment, layout.schema)
        if verdict is False:
            rows = rows.slice(0, 0)
        elif self.where is not None and verdict is None:
            judged = pa.concat_tables([theirs for _, _, theirs in pieces])
            rows = rows.filter(rows_kept(judged, self.where.expression(keys, judged.schema, where)))
        return self._as_one_table(_named(rows, fragment), where)

    def _asked(self, fragment: Fragment, schema: pa.Schema) -> list[str]:
        """Return the columns that `where` hangs on, as the file calls them."""
        verdict, keys = self._judged(fragment, schema)
        return [] if self.where is None or verdict is not None else self.where.columns(keys, schema)

    def _judged(self, fragment: Fragment, schema: pa.Schema) -> tuple[bool | None, Keys]:
        """Return what `where` says of a fragment's rows, by keys alone; and the keys."""
        keys = keys_of(fragment.path, fragment.group)
        if self.where is None:
            return True, keys
        completed = self.where.completed(keys, schema)
        return self.where.judge(completed), completed

    def _as_one_table(self, rows: pa.Table, where: str) -> pa.Table:
        """Return rows of which the columns passed through have the table's types."""
        for field in self.extra:
            name = f"extra:{field.name}"
            at = rows.column_names.index(name)
            try:
                rows = rows.set_column(at, name, converted(rows.column(name), field.type))
            except ValueError as error:
                raise column_error(where, field.name, error, "extra") from None
        return rows

    def read_image(self, row: dict[str, object]) -> bytes:
        """Return the encoded image of one row of `read`.

        Raises:
            ImageError: with the status and message for the row.
            OSError: if storage fails otherwise than by saying that there is no such file.
        """
        content = row.get("image")
        if content is None:
            content = fetch(
                row.get("uri"),
                self.limits.uri_prefixes,
                self.images.storage,
                max_bytes=self.limits.max_bytes,
            )
        assert isinstance(content, bytes)
        return content


def _named(rows: pa.Table, fragment: Fragment) -> pa.Table:
    """Return the rows with image_ids; a row without one is called by its place."""
    ids = rows.column("image_id")
    if ids.null_count:
        numbers = rows.column("source_row").to_pylist()
        places = pa.array([f"{fragment.path}:{number}" for number in numbers], pa.string())
        ids = pc.coalesce(ids, pa.chunked_array([places]))
    return rows.set_column(rows.column_names.index("image_id"), "image_id", ids)


def _sound(found: pa.Table | FileDamaged) -> pa.Table:
    if isinstance(found, FileDamaged):
        raise found
    return found
