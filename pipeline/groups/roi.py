"""What of a group's pictures counts, in the files of its model; and the grids of its patches.

A region is part of what a model is: it is a file of the group, and so its digest covers it.
"""

import json
from base64 import b64decode, b64encode

import numpy as np

from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.groups.files import reading_file
from patchlake.pipeline.images.interest import Interest, Painted, Polygons
from patchlake.pipeline.model_store.models import FileRecord, GroupRecord, write_files
from patchlake.pipeline.storage.folder import Folder

ROI = "roi.json"
# Axes of an embedding that has a grid: (images, rows, columns, dim).
_GRID_AXES = 4


def to_json(interest: Interest) -> bytes:
    """Return a region as a model keeps it; `from_json` undoes it."""
    if isinstance(interest, Polygons):
        return json.dumps({"polygons": interest.polygons}).encode()
    assert isinstance(interest, Painted)
    size = {"width": interest.width, "height": interest.height}
    return json.dumps(size | {"bits": b64encode(interest.bits).decode()}).encode()


def from_json(content: bytes) -> Interest:
    """Return the region that `to_json` wrote. Raises `ValueError`, `LookupError`, `TypeError`."""
    found = json.loads(content)
    if "polygons" not in found:
        return Painted.checked(found["width"], found["height"], b64decode(found["bits"]))
    return Polygons(tuple(tuple((float(x), float(y)) for x, y in one) for one in found["polygons"]))


def write_roi(model: Folder, group: str, content: bytes | None) -> list[FileRecord]:
    """Write what of a group counts, if there is such a region."""
    return [] if content is None else write_files(model, group, {ROI: content})


def roi_files(record: GroupRecord) -> list[FileRecord]:
    """Return the file of a group's region, or none."""
    return [file for file in record.files if file.role == ROI]


def load_interest(model: Folder, record: GroupRecord) -> Interest | None:
    """Return what of a group's pictures counts; None: all. Raises `ModelError`."""
    if not roi_files(record):
        return None
    with reading_file(model, record, ROI) as content:
        return from_json(content)


def grids_of(extractor: Extractor, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the finest grid of a method's patches; none of a method without maps.

    One black image goes through the network.

    Args:
        extractor: The network, and what the method makes of its maps.
        size: (height, width) of its input, pixels.
    """
    embedded = extractor(np.zeros((1, *size, 3), np.uint8)).values()
    grids = [(one.shape[1], one.shape[2]) for one in embedded if one.ndim == _GRID_AXES]
    return [max(grids, key=lambda grid: grid[0] * grid[1])] if grids else []
