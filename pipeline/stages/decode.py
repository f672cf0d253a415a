"""decode: a fragment's rows out of Parquet, its images to pixels of the model's input size."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import ColumnSettings, ImageSettings
from pipeline.errors import ImageError, InputChanged, TableError
from pipeline.images.decode import decode_image
from pipeline.images.geometry import Geometry, input_shape, join_inputs
from pipeline.lake.folder import Folder
from pipeline.lake.footers import read_column_names
from pipeline.lake.fragments import Fragment, Fragments, keys_of
from pipeline.lake.rows import group_rows, opened_for
from pipeline.lake.s3_file import fetch_columns
from pipeline.lake.where import Where
from pipeline.scores.heatmap import grey_picture
from pipeline.stages.batch import ATTEMPTS, FragmentBatch, advance

# `all`: every row (score). `good`: label good, split not test (fit). `unlabelled`: split not test,
# for a group without any label. `none`: every row, but no pixels, for a group without a model.
Selection = Literal["all", "good", "unlabelled", "none"]


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
        """
        return self._checked(fragment, leave_out=() if mask else (self.columns.mask,))

    def read_names(self, fragment: Fragment) -> pa.Table:
        """Return the same without images, masks and URIs: who the rows are of. Raises as `read`."""
        columns = self.columns
        return self._checked(fragment, leave_out=(columns.mask, columns.image, columns.uri))

    def _checked(self, fragment: Fragment, *, leave_out: Sequence[str]) -> pa.Table:
        try:
            rows = self._read(fragment, leave_out=leave_out)
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
            file = pq.ParquetFile(handle)
            names = read_column_names(file, self.columns, where)
            names = [name for name in names if name not in leave_out]
            condition, asked = self._condition(fragment, file.schema_arrow)
            wanted = [*dict.fromkeys([*names, self.columns.group, *asked])]
            fetch_columns(handle, file, fragment.row_groups, wanted)
            file = opened_for(handle, file, fragment.row_groups, wanted)
            pieces = list(group_rows(file, fragment, self.columns, wanted))
        found = sum(len(numbers) for numbers, _ in pieces)
        if found != fragment.images:
            raise TableError(
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
            content = self._fetch(row.get("uri"))
        assert isinstance(content, bytes)
        return decode_image(
            content, max_pixels=self.limits.max_pixels, max_bytes=self.limits.max_bytes
        )

    def _fetch(self, uri: object) -> bytes:
        if not isinstance(uri, str):
            raise ImageError("missing", "the row has neither image bytes nor a URI")
        folder, _, name = uri.rpartition("/")
        resolved = os.path.normpath(uri) if "://" not in uri else uri
        prefixes = [prefix.rstrip("/") + "/" for prefix in self.limits.uri_prefixes]
        allowed = any(resolved.startswith(prefix) for prefix in prefixes)
        if not allowed or ".." in uri.split("/"):
            raise ImageError(
                "missing",
                f"'{uri}' is below none of image.uri_prefixes {list(self.limits.uri_prefixes)}",
            )
        try:
            return Folder(folder, self.images.storage).read(name, at_most=self.limits.max_bytes + 1)
        except FileNotFoundError:
            raise ImageError("missing", f"'{uri}' does not exist") from None


def _named(rows: pa.Table, fragment: Fragment, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the image_ids; a row without one is called by its place."""
    ids = rows.column("image_id").cast(pa.string())
    if ids.null_count == 0:
        return ids
    places = pa.array([f"{fragment.path}:{number}" for number in numbers.to_pylist()])
    return pc.coalesce(ids, pa.chunked_array([places]))


_OURS = ("image_id", "image", "uri", "group", "split", "label", "mask")


@dataclass(frozen=True)
class Decode:
    """Stage: the rows selected, each with status, error, width and height, and uint8 pixels."""

    source: Source
    # Group -> which of its rows; `all` where it is not named.
    selections: Mapping[str, Selection]
    threads: int = 1
    # Of the inputs that are made, where models differ; else the source's.
    geometries: Sequence[Geometry] = ()
    # How often this and every later stage tries a fragment.
    attempts: int = ATTEMPTS
    # Whether heatmaps will be drawn: the rows then carry the grey picture that is drawn on, 0.26 MB
    # an image at most, so that no image is read and decoded twice.
    pictures: bool = False
    # Of each fragment, by its key: the rows, numbered in the file, that are taken of those
    # selected. None: all of them.
    chosen: Mapping[str, Sequence[int]] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch with rows and pixels, of each image what `join_inputs` makes of it.

        Args:
            table: A one-row table of schema `PLAN`: the first stage begins with the plan itself.
        """
        batch = FragmentBatch(Fragments(table)[0], attempts=self.attempts)
        return advance("decode", self._decode, batch.to_arrow()).to_arrow()

    def _decode(self, batch: FragmentBatch) -> FragmentBatch:
        selection = self.selections.get(batch.fragment.group, "all")
        rows = select_rows(self.source.read(batch.fragment), selection)
        if self.chosen is not None:
            taken = pa.array(self.chosen[batch.fragment.key], pa.int64())
            rows = rows.filter(pc.is_in(rows.column("source_row"), value_set=taken))
        if selection == "none":
            reason = f"the model has no group '{batch.fragment.group}'"
            outcomes: list[_Outcome] = [_Outcome.failed("no_model", reason)] * len(rows)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                # A row at a time: as Python objects all of them would be a second copy.
                one = (rows.slice(number, 1) for number in range(len(rows)))
                outcomes = list(pool.map(self._decode_row, one))
        pixels = [o.pixels for o in outcomes if o.pixels is not None]
        shape = input_shape(self._geometries)
        array = np.stack(pixels) if pixels else np.empty((0, *shape), np.uint8)
        return replace(batch, rows=_described(rows, outcomes), array=array)

    @property
    def _geometries(self) -> Sequence[Geometry]:
        return self.geometries or (self.source.geometry,)

    def _decode_row(self, row: pa.Table) -> "_Outcome":
        try:
            image = self.source.open_image(row.to_pylist()[0])
            pixels = join_inputs(image, self._geometries)
        except ImageError as error:
            return _Outcome.failed(error.status, str(error))
        picture = grey_picture(image).tobytes() if self.pictures else None
        return _Outcome("ok", None, image.width, image.height, pixels, picture)


@dataclass(frozen=True)
class _Outcome:
    status: str
    error: str | None
    width: int | None
    height: int | None
    pixels: np.ndarray | None
    picture: bytes | None = None

    @classmethod
    def failed(cls, status: str, error: str) -> "_Outcome":
        return cls(status, error, None, None, None)


def select_rows(rows: pa.Table, selection: Selection) -> pa.Table:
    """Return the rows that a selection takes."""
    if selection in ("all", "none"):
        return rows
    keep = pa.array(np.ones(len(rows), bool))
    if "split" in rows.column_names:
        is_test = pc.fill_null(pc.equal(rows.column("split"), "test"), False)  # noqa: FBT003
        keep = pc.and_(keep, pc.invert(is_test))
    if selection == "good":
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows.column("label"), "good"), False))  # noqa: FBT003
    return rows.filter(keep)


def _described(rows: pa.Table, outcomes: Sequence[_Outcome]) -> pa.Table:
    """Return what later stages need of the rows: no encoded images, but what became of them."""
    kept = [
        n for n in rows.column_names if n in ("image_id", "source_row") or n.startswith("extra:")
    ]
    table = rows.select(kept)
    for name, kind in (
        ("status", pa.string()),
        ("error", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("picture", pa.large_binary()),
    ):
        table = table.append_column(name, pa.array([getattr(o, name) for o in outcomes], kind))
    return table
