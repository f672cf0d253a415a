"""changed: images of a model that the lake no longer has as images to train on.

Read are the narrow columns of files that are not as they were when the model's images joined. A
file that is has nothing to tell. A row is the same image if its content is the same (by the
`sha256` that `ingest` keeps), or, where the lake keeps no such column, if its image_id is the same
and the file of the fit has changed or gone: what is behind an image_id is then not looked at.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.lake.selection import labels_mean, splits_mean
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.reading.named import read_named
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.stores import Entry

# Narrow columns are small, behind the latency of an object store.
_FILES_AT_ONCE = 16
_ASKED = ("image_id", "group", "split", "label")
# What has become of an image that is not there any more.
GONE = "gone, or replaced by another picture"

Row = Mapping[str, object]


def changed_images(
    lake: Folder, columns: ColumnSettings, images: Mapping[str, pa.Table]
) -> dict[str, dict[str, str]]:
    """Return what has become of images that are no longer to be trained on: group -> id -> what.

    Args:
        lake: Where they joined from.
        columns: Of the lake, and what labels and splits mean.
        images: The images of each group's model, schema `TRAINING_IMAGES`.

    Raises:
        ConfigError: if the lake holds no table, or one that cannot be read.
    """
    entries = list_tables(lake)
    now = {(entry.name, entry.version) for entry in entries}
    then = set[tuple[str, str]]()
    for table in images.values():
        files = table.group_by(["source_path", "source_version"]).aggregate([])
        then |= set(zip(*(files.column(n).to_pylist() for n in files.column_names), strict=True))
    unread = [entry for entry in entries if (entry.name, entry.version) not in then]
    joined = pa.concat_tables(images.values())
    read = partial(_rows_like, lake, columns, joined)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        found = list(pool.map(read, unread))
    changed = {}
    for group, table in images.items():
        rows = _Rows.of([row for some, _ in found for row in some if row["group"] == group])
        is_labelled = any(group in labelled for _, labelled in found)
        fates = {
            str(image["image_id"]): fate
            for image in table.to_pylist()
            if (fate := _fate(image, rows, now, is_labelled=is_labelled))
        }
        if fates:
            changed[group] = fates
    return changed


@dataclass(frozen=True)
class _Rows:
    """Rows of a lake that may be images of one group's model."""

    by_content: dict[object, list[Row]] = field(default_factory=lambda: defaultdict(list))
    by_id: dict[object, list[Row]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "_Rows":
        made = cls()
        for row in rows:
            made.by_content[row["sha256"]].append(row)
            made.by_id[row["image_id"]].append(row)
        return made

    def of_image(self, image: Row, *, is_in_place: bool) -> list[Row]:
        """Return the rows that are this image."""
        content = image["sha256"]
        same = list(self.by_content.get(content, ())) if content is not None else []
        if same or is_in_place:
            return same
        named = self.by_id.get(image["image_id"], ())
        named = [row for row in named if content is None or row["sha256"] is None]
        there = [row for row in named if row["path"] == image["source_path"]]
        at = [row for row in there if row["row"] == image["source_row"]]
        return at or there or list(named)


def _rows_like(
    lake: Folder, columns: ColumnSettings, images: pa.Table, entry: Entry
) -> tuple[list[Row], frozenset[str]]:
    """Return the rows of a file that may be one of these images; and its groups with a label."""
    try:
        rows = read_named(lake, columns, entry.name, entry.version, (*_ASKED, "sha256"))
    except pa.ArrowInvalid:  # a `sha256` that is no text
        rows = read_named(lake, columns, entry.name, entry.version, _ASKED)
        rows = rows.append_column("sha256", pa.nulls(len(rows), pa.string()))
    numbers = pa.array(range(len(rows)), pa.int64())
    places = [f"{entry.name}:{number}" for number in range(len(rows))]
    ids = pc.coalesce(rows.column("image_id"), pa.array(places, pa.string()))
    label = labels_mean(rows.column("label"), columns)
    split = splits_mean(rows.column("split"), columns)
    labelled = rows.column("group").filter(label.is_valid()).unique().to_pylist()
    contents = images.column("sha256").drop_null()
    like = pc.or_(
        pc.is_in(ids, value_set=images.column("image_id")),
        pc.is_in(pc.utf8_lower(rows.column("sha256")), value_set=contents),
    )
    table = pa.table(
        {
            "image_id": ids,
            "group": rows.column("group"),
            "sha256": pc.utf8_lower(rows.column("sha256")),
            "label": rows.column("label"),
            "split": rows.column("split"),
            "label_means": label,
            "split_means": split,
            "path": pa.repeat(entry.name, len(rows)),
            "row": numbers,
        }
    )
    return table.filter(like).to_pylist(), frozenset(labelled)


def _fate(image: Row, rows: _Rows, now: set[tuple[str, str]], *, is_labelled: bool) -> str:
    """Return what has become of an image, or nothing where it is still one to train on."""
    is_in_place = (image["source_path"], image["source_version"]) in now
    found = rows.of_image(image, is_in_place=is_in_place)
    for row in found:
        if row["label_means"] == "defect":
            return f"its label is now '{row['label']}'"
    if is_in_place:
        return ""
    if not found:
        return GONE
    trained = [row for row in found if row["split_means"] not in ("test", "other")]
    if not trained:
        return f"its split is now '{found[0]['split']}'"
    if is_labelled and all(row["label_means"] is None for row in trained):
        return "it has no label any more"
    return ""
