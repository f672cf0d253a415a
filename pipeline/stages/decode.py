"""decode: a fragment's rows out of Parquet, its images to pixels of the model's input size."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.appearance import appearance
from patchlake.pipeline.images.decode import decode_mask, decode_picture, limits_of
from patchlake.pipeline.images.geometry import (
    Geometries,
    Geometry,
    input_shape,
    inputs_of,
    split_inputs,
    turned_inputs,
)
from patchlake.pipeline.images.interest import Interest, Painted, confine
from patchlake.pipeline.images.pictures import Picture
from patchlake.pipeline.lake.selection import Selection, select_rows
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.stages.batch import ATTEMPTS, FragmentBatch, advance


@dataclass(frozen=True)
class Decode:
    """Stage: the rows selected, each with status, error, width and height, and uint8 pixels."""

    source: Source
    # Group -> which of its rows; `all` where it is not named.
    selections: Mapping[str, Selection]
    threads: int = 1
    # Of the inputs that are made, where models differ; else the source's.
    geometries: Sequence[Geometry | Geometries] = ()
    # How often this and every later stage tries a fragment.
    attempts: int = ATTEMPTS
    # Whether heatmaps will be drawn: the rows then carry the small photo that they are drawn on, as
    # JPEG of some 30 KB, so that no file is read and decoded twice.
    photos: bool = False
    # Of each fragment, by its key: the rows, numbered in the file, that are taken of those
    # selected. None: all of them.
    chosen: Mapping[str, Sequence[int]] | None = None
    # Group -> what of its pictures counts. Where the source has a column for it, each image says
    # that itself.
    interests: Mapping[str, Interest] = field(default_factory=dict)
    # Group -> grids of patches, of which one at least must be inside.
    grids: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    # Group -> why the model does not have it, where that is known.
    reasons: Mapping[str, str] = field(default_factory=dict)
    # How many inputs are made of a photo to be learned from: itself, and copies of it that are
    # turned. Pixels of more than one have their axis behind that of the images.
    rotations: int = 1

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch with rows and pixels, of each image what `join_inputs` makes of it.

        Args:
            table: A one-row table of schema `PLAN`: the first stage begins with the plan itself.
        """
        batch = FragmentBatch(Fragments(table)[0], attempts=self.attempts)
        return advance("decode", self._decode, batch.to_arrow()).to_arrow()

    def _decode(self, batch: FragmentBatch) -> FragmentBatch:
        selection = self.selections.get(batch.fragment.group, "all")
        read = self.source.read(batch.fragment, roi=bool(self.source.columns.roi))
        rows = select_rows(read, selection, self.source.columns)
        if self.chosen is not None:
            taken = pa.array(self.chosen[batch.fragment.key], pa.int64())
            rows = rows.filter(pc.is_in(rows.column("source_row"), value_set=taken))
        if selection == "none":
            why = self.reasons.get(batch.fragment.group)
            reason = f"the model has no group '{batch.fragment.group}'" + (
                f": {why}" if why else ""
            )
            outcomes: list[_Outcome] = [_Outcome.failed("no_model", reason)] * len(rows)
        else:
            passed = Passed("decode", batch.fragment.key)
            decode_row = partial(self._decode_row, passed, batch.fragment.group)
            with ThreadPoolExecutor(self.threads) as pool:
                # A row at a time: as Python objects all of them would be a second copy.
                one = (rows.slice(number, 1) for number in range(len(rows)))
                outcomes = list(pool.map(decode_row, one))
        pixels = [o.pixels for o in outcomes if o.pixels is not None]
        # A group without a model may have no geometry either.
        geometries = () if selection == "none" else self._inputs(batch.fragment.group)
        shape = input_shape(geometries)
        array = np.stack(pixels) if pixels else np.empty((0, *shape), np.uint8)
        if self.rotations > 1:
            array = array.reshape(len(array), self.rotations, *geometries[0].input_size, 3)
        return replace(batch, rows=_described(rows, outcomes), array=array)

    def _inputs(self, group: str) -> Sequence[Geometry]:
        inputs = inputs_of(self.geometries or (self.source.geometry,), group)
        return inputs if self.rotations == 1 else turned_inputs(inputs[0], self.rotations)

    def _decode_row(self, passed: Passed, group: str, row: pa.Table) -> "_Outcome":
        try:
            record = row.to_pylist()[0]
            content = self.source.read_image(record)
            limits = limits_of(self.source.limits)
            geometries = self._inputs(group)
            found = decode_picture(content, limits, geometries, photo=self.photos)
            interest = self._interest(record, group, found)
            if interest is not None:
                found = confine(found, interest, geometries, self.grids.get(group, ()))
        except ImageError as error:
            return _Outcome.failed(error.status, str(error))
        finally:
            passed(1)
        sha256 = hashlib.sha256(content).hexdigest()
        interior = found.interior.to_bytes() if found.interior else None
        sizes = found.width, found.height
        # What the first model sees.
        first: np.ndarray = split_inputs(found.pixels[np.newaxis], geometries)[0][0]
        looks = appearance(first, found.interior)
        return _Outcome(
            *("ok", None, *sizes, found.pixels, found.photo, sha256, interior),
            brightness=looks.brightness,
            sharpness=looks.sharpness,
            thumbnail=looks.thumbnail,
        )

    def _interest(self, row: dict[str, object], group: str, picture: Picture) -> Interest | None:
        """Return what counts of an image; None: all. Raises `ImageError`."""
        column = self.source.columns.roi
        if not column:
            return self.interests.get(group)
        content = row.get("roi")
        if not isinstance(content, bytes):
            raise ImageError("missing", f"the row has no region of interest in column '{column}'")
        size = picture.width, picture.height
        try:
            mask = decode_mask(content, size[::-1], limits_of(self.source.limits))
        except ImageError as error:
            what = f"its region of interest (column '{column}'): {error}"
            raise ImageError(error.status, what) from None
        if mask.size != size:
            raise ImageError(
                "unsupported",
                f"its region of interest (column '{column}') has {mask.size[0]}x{mask.size[1]} "
                f"pixels, and the upright image {size[0]}x{size[1]}: they must be of one size",
            )
        return Painted.of(mask.is_defect)


@dataclass(frozen=True)
class _Outcome:
    status: str
    error: str | None
    width: int | None
    height: int | None
    pixels: np.ndarray | None
    photo: bytes | None = None
    # Of the encoded file.
    sha256: str | None = None
    # `Interior.to_bytes`.
    interior: bytes | None = None
    # `images.appearance`, of the first model's input.
    brightness: float | None = None
    sharpness: float | None = None
    thumbnail: bytes | None = None

    @classmethod
    def failed(cls, status: str, error: str) -> "_Outcome":
        return cls(status, error, None, None, None)


def _described(rows: pa.Table, outcomes: Sequence[_Outcome]) -> pa.Table:
    """Return what later stages need of the rows: no encoded images, but what became of them."""
    named = ("image_id", "source_row", "part_id")
    kept = [n for n in rows.column_names if n in named or n.startswith("extra:")]
    table = rows.select(kept)
    for name, kind in (
        ("status", pa.string()),
        ("error", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("photo", pa.large_binary()),
        ("sha256", pa.string()),
        ("interior", pa.binary()),
        ("brightness", pa.float32()),
        ("sharpness", pa.float32()),
        ("thumbnail", pa.binary()),
    ):
        table = table.append_column(name, pa.array([getattr(o, name) for o in outcomes], kind))
    return table
