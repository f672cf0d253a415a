"""MODEL/suspects.parquet: the training images that look anomalous to the model."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ModelError, StorageError
from patchlake.pipeline.groups.suspects import as_listed
from patchlake.pipeline.lake.photos import Photos, Place
from patchlake.pipeline.record.runs import RunRecord
from patchlake.pipeline.shown import counted
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import parquet_table, reading
from patchlake.pipeline.tables import SUSPECTS

log = logging.getLogger(__name__)

SUSPECTS_FILE = "suspects.parquet"
# Pictures of a group, and the longer side of one, in pixels: some 5 KB each.
_PICTURED, _SIDE = 100, 192


def photos_of(record: RunRecord) -> Photos:
    """Return the images of the run that fits or changes a model."""
    return Photos.of_table(Folder.at(record.images, record.settings.storage), record.settings)


def write_suspects(
    model: Folder, suspects: Mapping[str, pa.Table], photos: Photos, *, is_step: bool = False
) -> None:
    """Write the list anew, in one atomic put, and say of which groups it is long.

    Args:
        model: The model folder.
        suspects: By group, of those that were fitted or changed; schema `SUSPECTS`.
        photos: Of the images that they were fitted on, or changed by.
        is_step: Whether the model was changed, and not fitted: then the lines of other groups stay,
            and those of images that the fit has left out.

    Raises:
        ModelError: if the earlier list is damaged.
    """
    earlier = _earlier(model) if is_step else SUSPECTS.empty_table()
    pictured = _Pictures(photos, _pictures_of(earlier))
    tables = [pictured.added_to(suspects[group]) for group in sorted(suspects)]
    if is_step:
        is_changed = pc.is_in(earlier.column("group"), value_set=pa.array(list(suspects)))
        kept = pc.or_(pc.invert(is_changed), earlier.column("left_out"))
        tables.insert(0, earlier.filter(kept))
    sink = io.BytesIO()
    table = pa.concat_tables([SUSPECTS.empty_table(), *tables])
    order = [("group", "ascending"), ("left_out", "descending"), ("deviation", "descending")]
    order += [("image_id", "ascending"), ("source_path", "ascending"), ("source_row", "ascending")]
    pq.write_table(table.sort_by(order), sink, compression="zstd")
    model.write(SUSPECTS_FILE, sink.getvalue())
    for group, found in suspects.items():
        _say(model, group, found)


@dataclass(frozen=True)
class _Pictures:
    """What there is to look at: the images as they are now, and pictures by their SHA-256."""

    photos: Photos
    known: dict[str, bytes]

    def added_to(self, suspects: pa.Table) -> pa.Table:
        """Return the suspects of a group with pictures of the first ones."""
        first = suspects.slice(0, _PICTURED).to_pylist()
        found = self._read([row for row in first if row["sha256"] not in self.known])
        pictures = [(self.known | found).get(row["sha256"]) for row in first]
        pictures += [None] * (len(suspects) - len(first))
        at = SUSPECTS.get_field_index("picture")
        return suspects.set_column(at, SUSPECTS.field(at), pa.array(pictures, pa.binary()))

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
        places = [Place(row["source_path"], row["source_row"]) for row in rows]
        try:
            found = self.photos.read(places, _SIDE)
        except StorageError as error:
            # The model is whole without them.
            log.warning("there are no pictures of suspects: %s", error)
            return {}
        # A model that has learned since may be of several tables: what lies at the same place of
        # another one has another digest, and is not looked up.
        return {one.sha256: one.jpeg for one in found if one.sha256 and one.jpeg}


def _pictures_of(suspects: pa.Table) -> dict[str, bytes]:
    columns = (suspects.column(name).to_pylist() for name in ("sha256", "picture"))
    return {sha256: jpeg for sha256, jpeg in zip(*columns, strict=True) if sha256 and jpeg}


def _earlier(model: Folder) -> pa.Table:
    try:
        content = model.read(SUSPECTS_FILE)
    except FileNotFoundError:
        # A model of before there was a list.
        return SUSPECTS.empty_table()
    with reading(model.path(SUSPECTS_FILE), "remove it: it is a list to read only", ModelError):
        table = parquet_table(content)
        return as_listed(table)


def _say(model: Folder, group: str, found: pa.Table) -> None:
    left_out = pc.sum(found.column("left_out")).as_py() or 0
    doubtful = (pc.sum(found.column("is_suspect")).as_py() or 0) - left_out
    where = model.path(SUSPECTS_FILE)
    if left_out:
        log.warning(
            "group '%s': a look at the training images left out %s that seemed anomalous, see %s",
            *(group, counted(left_out, "images"), where),
        )
    elif doubtful:
        log.warning(
            "group '%s': of the training images %s may be anomalous, see %s; withdraw what is, or "
            "fit again with --robust --overwrite, which leaves such images out",
            *(group, counted(doubtful, "images"), where),
        )
