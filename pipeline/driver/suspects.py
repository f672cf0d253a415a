"""MODEL/suspects.parquet: the training images that look anomalous to the model."""

import io
import logging
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.shown import counted
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import parquet_table, reading
from patchlake.pipeline.tables import SUSPECTS

log = logging.getLogger(__name__)

SUSPECTS_FILE = "suspects.parquet"


def write_suspects(
    model: Folder, suspects: Mapping[str, pa.Table], *, is_step: bool = False
) -> None:
    """Write the list anew, in one atomic put, and say of which groups it is long.

    Args:
        model: The model folder.
        suspects: By group, of those that were fitted or changed; schema `SUSPECTS`.
        is_step: Whether the model was changed, and not fitted: then the lines of other groups stay,
            and those of images that the fit has left out.

    Raises:
        ModelError: if the earlier list is damaged.
    """
    tables = [suspects[group] for group in sorted(suspects)]
    if is_step:
        earlier = _earlier(model)
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


def _earlier(model: Folder) -> pa.Table:
    try:
        content = model.read(SUSPECTS_FILE)
    except FileNotFoundError:
        # A model of before there was a list.
        return SUSPECTS.empty_table()
    with reading(model.path(SUSPECTS_FILE), "remove it: it is a list to read only", ModelError):
        table = parquet_table(content)
        if not table.schema.equals(SUSPECTS):
            raise ValueError(f"its columns are {', '.join(table.column_names)}")
        return table


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
            "fit with --robust, which leaves such images out",
            *(group, counted(doubtful, "images"), where),
        )
