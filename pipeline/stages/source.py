"""source: the rows of a lake under our own column names, and their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import ColumnSettings, ImageSettings
from pipeline.errors import FileDamaged, InputChanged
from pipeline.images.decode import decode_image
from pipeline.images.geometry import Geometry
from pipeline.lake.apart import Call, apart
from pipeline.lake.fetch import fetch
from pipeline.lake.folder import Folder
from pipeline.lake.footers import read_column_names
from pipeline.lake.fragments import Fragment, keys_of
from pipeline.lake.rows import group_rows, opened_for
from pipeline.lake.s3_file import fetch_columns
from pipeline.lake.where import Where


@dataclass(frozen=True)
class Source:
    """Where images are and how they are read."""

    images: Folder
    columns: ColumnSettings
    limits: ImageSettings
    geometry: Geometry
    # Rows in which it does not hold are left out.
    where: Where | None = None

    def read(self, fragment: Fragment, *, mask: bool = False) -> pa.Table:
        """Return a fragment's rows under our own column names, with `source_row`.

        `uri`, `split` and `label` are null where the file lacks them.

        Raises:
            InputChanged: if the file is not the one that was planned, or gone.
            FileDamaged: if it cannot be read.
        """
        return self._checked(fragment, leave_out=() if mask else (self.columns.mask,))

    def read_names(self, fragment: Fragment) -> pa.Table:
        """Return the same without images, masks and URIs: who the rows are of. Raises as `read`."""
        columns = self.columns
        return self._checked(fragment, leave_out=(columns.mask, columns.image, columns.uri))

    def _checked(self, fragment: Fragment, *, leave_out: Sequence[str]) -> pa.Table:
        try:
            read = partial(self._read, leave_out=leave_out)
            rows = apart(self.images, Call(read, fragment, self.images.path(fragment.path)))
        except Exception:
            # Of a file that was replaced by another, this says more than what it made of it.
            self._require_unchanged(fragment)
            raise
        # After reading, so that a file which is replaced meanwhile does not pass either.
        if not self.images.pins_versions:
            self._require_unchanged(fragment)
        return rows

    def _require_unchanged(self, fragment: Fragment) -> None:
        where = self.images.path(fragment.path)
        try:
            version = self.images.entry(fragment.path).version
        except FileNotFoundError:
            raise InputChanged(f"{where} vanished since it was planned") from None
        if version != fragment.version:
            raise InputChanged(
                f"{where} changed since it was planned: its version was {fragment.version}, and is "
                f"{version}; the same command plans it anew"
            )

    def _read(self, fragment: Fragment, *, leave_out: Sequence[str]) -> pa.Table:
        where = self.images.path(fragment.path)
        with self.images.open(fragment.path, fragment.version) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            names = read_column_names(file, self.columns, where)
            names = [name for name in names if name not in leave_out]
            condition, asked = self._condition(fragment, file.schema_arrow)
            wanted = [*dict.fromkeys([*names, self.columns.group, *asked])]
            fetch_columns(handle, file, fragment.row_groups, wanted)
            file = opened_for(handle, file, fragment.row_groups, wanted)
            pieces = list(group_rows(file, fragment, self.columns, wanted))
        found = sum(len(numbers) for numbers, _ in pieces)
        if found != fragment.images:
            raise FileDamaged(
                f"{where} has {found} of the {fragment.images} rows that were planned for group "
                f"'{fragment.group}'; it changed since: start again"
            )
        table = pa.concat_tables([rows for _, rows in pieces])
        numbers = pa.chunked_array([numbers for numbers, _ in pieces], pa.int64())
        if condition is not None:
            # In one batch, which has an order.
            judged = ds.dataset(table.select(asked).combine_chunks())
            holds = judged.scanner(columns={"holds": condition}).to_table().column("holds")
            table, numbers = table.filter(holds), numbers.filter(holds)
        return self._renamed(table.select(names), fragment, numbers)

    def _condition(
        self, fragment: Fragment, schema: pa.Schema
    ) -> tuple[pc.Expression | None, list[str]]:
        """Return what is to hold of a row, and the columns that takes."""
        keys = keys_of(fragment.path, fragment.group)
        if self.where is None or self.where.judge(keys):
            return None, []
        return self.where.expression(keys, schema, fragment.path), self.where.columns(keys)

    def _renamed(self, table: pa.Table, fragment: Fragment, numbers: pa.ChunkedArray) -> pa.Table:
        ours = {getattr(self.columns, name): name for name in _OURS}
        extra = {name: table.column(name) for name in self.columns.extra}
        table = table.rename_columns([ours.get(name, name) for name in table.column_names])
        kept = table.select([name for name in table.column_names if name in _OURS])
        for name, values in extra.items():
            kept = kept.append_column(f"extra:{name}", values)
        kept = kept.set_column(
            kept.column_names.index("image_id"), "image_id", _named(kept, fragment, numbers)
        )
        return kept.append_column("source_row", numbers)

    def open_image(self, row: dict[str, object]) -> Image.Image:
        """Return the upright image of one row of `read`.

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
        return decode_image(
            content, max_pixels=self.limits.max_pixels, max_bytes=self.limits.max_bytes
        )


def _named(rows: pa.Table, fragment: Fragment, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the image_ids; a row without one is called by its place."""
    ids = rows.column("image_id").cast(pa.string())
    if ids.null_count == 0:
        return ids
    places = pa.array([f"{fragment.path}:{number}" for number in numbers.to_pylist()])
    return pc.coalesce(ids, pa.chunked_array([places]))


_OURS = ("image_id", "image", "uri", "group", "split", "label", "mask")
