"""A small lake of good photos, and of some of them once more with synthetic defects.

Settings can be compared on it before anybody has seen a real defect: most of a group's photos are
to train on, and the photos of some parts, which are held out, are to test, as they are and flawed.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from patchlake.pipeline.errors import ConfigError, ImageError
from patchlake.pipeline.images.decode import decode_picture, limits_of
from patchlake.pipeline.images.flaws import KINDS, flawed
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.lake.selection import Selection, select_rows
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.maths.likeness import look_alikes
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import IMAGES

log = logging.getLogger(__name__)

# Of a group: photos, the pixels of all of them, and fragments that they are read from.
_PHOTOS, _PIXELS, _FRAGMENTS = 120, 2**28, 16
# Of fewer there is nothing to train on, or to hold out.
_FEWEST = 8
# Share of the photos that is held out, at least; of whole parts.
_HELD_OUT = 0.25
# A photo that is flawed has this side at least.
_LEAST_SIDE = 32
# Of the smallest input on which a size can be asked.
_TINY = Geometry((1, 1), None)


@dataclass(frozen=True)
class _Photo:
    image_id: str
    part_id: str | None
    pixels: np.ndarray


def write_flawed(
    source: Source,
    selections: Mapping[str, Selection],
    fragments: Fragments,
    target: Folder,
    seed: int,
) -> int:
    """Write the lake of all groups; return how many photos it was made of.

    Up to 120 good photos of a group are taken, evenly spread, or as many as have 256 megapixels.
    Parts are drawn until a quarter of the photos is held out: photos with the same `part_id`, and
    look-alikes of those without. Of each photo that is held out there is one with a defect of each
    kind (`images.flaws`). The same lake and seed give the same bytes.

    Args:
        source: The lake that good photos are taken from.
        selections: Which rows of each group are good, and to train on.
        fragments: The plan.
        target: An empty folder.
        seed: Of which parts are held out, and of the defects.

    Raises:
        ConfigError: if a group has fewer than 8 photos that can be used, or photos of one part.
    """
    count = 0
    for number, group in enumerate(fragments.groups):
        photos = list(_photos(source, selections[group], fragments.of_group(group)))
        count += len(photos)
        held = _held_out(group, photos, seed)
        with target.writing(f"group-{number:05d}.parquet") as file:
            writer = pq.ParquetWriter(file, IMAGES)
            for at, photo in enumerate(photos):
                other = photos[(at + 1) % len(photos)].pixels
                rows = _rows(group, photo, other, [seed, number, at], is_held=bool(held[at]))
                writer.write_table(rows)
            writer.close()
    return count


def _photos(source: Source, selection: Selection, fragments: Fragments) -> Iterator[_Photo]:
    """Yield good photos of a group, evenly spread over its fragments."""
    used = min(_FRAGMENTS, len(fragments))
    places = np.linspace(0, len(fragments) - 1, used).round().astype(int).tolist()
    left, pixels = _PHOTOS, _PIXELS
    for done, place in enumerate(places):
        share = -(-left // (used - done))
        for photo in _photos_of(source, selection, fragments[place], share):
            pixels -= photo.pixels.shape[0] * photo.pixels.shape[1]
            left -= 1
            yield photo
            if pixels <= 0:
                return


def _photos_of(
    source: Source, selection: Selection, fragment: Fragment, count: int
) -> Iterator[_Photo]:
    rows = select_rows(source.read(fragment), selection, source.columns)
    count = min(count, len(rows))
    limits = limits_of(source.limits)
    for place in np.linspace(0, len(rows) - 1, count).round().astype(int).tolist():
        record = rows.slice(place, 1).to_pylist()[0]
        try:
            content = source.read_image(record)
            # A JPEG's size does not depend on the scale at which it is decoded.
            asked = decode_picture(content, replace(limits, draft=True), [_TINY], photo=False)
            if min(asked.width, asked.height) < _LEAST_SIDE:
                continue
            own = Geometry((asked.height, asked.width), None)
            found = decode_picture(content, replace(limits, draft=False), [own], photo=False)
        except ImageError as error:
            log.warning("%s is left out: %s", shown(str(record["image_id"])), error)
            continue
        part = record.get("part_id")
        yield _Photo(str(record["image_id"]), None if part is None else str(part), found.pixels)


def _held_out(group: str, photos: list[_Photo], seed: int) -> np.ndarray:
    """Return which photos are held out. Raises `ConfigError` where there are too few."""
    if len(photos) < _FEWEST:
        raise ConfigError(
            f"group {shown(group)} has {len(photos)} good photos that can be used, and settings "
            f"are compared on {_FEWEST} at least"
        )
    seen = np.stack([thumbnail(photo.pixels).ravel() for photo in photos])
    alike = look_alikes(seen).tolist()
    parts = [
        f"image {like}" if photo.part_id is None else f"part {photo.part_id}"
        for photo, like in zip(photos, alike, strict=True)
    ]
    names = sorted(set(parts))
    if len(names) == 1:
        raise ConfigError(
            f"the good photos of group {shown(group)} are all of one part or look alike, and "
            "settings are compared on parts that are not trained on"
        )
    held = np.zeros(len(photos), np.bool_)
    for name in np.random.default_rng(seed).permutation(names)[:-1].tolist():
        of_part = np.array([part == name for part in parts])
        # A part that would leave too little to train on stays.
        if held.mean() < _HELD_OUT and (held | of_part).mean() <= 2 * _HELD_OUT:
            held |= of_part
    if not held.any():
        # All parts are large: the smallest one.
        sizes = {name: parts.count(name) for name in names}
        held = np.array([part == min(sizes, key=lambda name: sizes[name]) for part in parts])
    return held


def _rows(
    group: str, photo: _Photo, other: np.ndarray, seed: list[int], *, is_held: bool
) -> pa.Table:
    """Return the rows of a photo: one to train on, or several to test."""
    split = "test" if is_held else "train"
    rows = [_row(photo, group, split, "good", photo.pixels, None)]
    for number, kind in enumerate(KINDS if is_held else ()):
        found = flawed(photo.pixels, kind, np.random.default_rng([*seed, number]), other)
        rows.append(_row(photo, group, split, kind, found.pixels, found.mask))
    return pa.Table.from_pylist(rows, schema=IMAGES)


def _row(
    photo: _Photo, group: str, split: str, label: str, pixels: np.ndarray, mask: np.ndarray | None
) -> dict[str, object]:
    return {
        "image_id": f"{label}/{photo.image_id}",
        "image": _png(pixels),
        "group": group,
        "split": split,
        "label": label,
        "mask": None if mask is None else _png(mask.astype(np.uint8) * 255),
        "part_id": photo.part_id,
    }


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
