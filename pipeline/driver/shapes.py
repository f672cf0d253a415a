"""Which shape each group's inputs get where `image.resize` is `auto`: asked of a few good photos.

A fit decides it, before it embeds anything, and the model keeps it. The same plan gives the same
shapes, since the photos are taken at places that depend on the plan alone.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.decode import decode_picture, limits_of
from patchlake.pipeline.images.geometry import Geometries, Geometry, inputs_of
from patchlake.pipeline.images.shapes import ALIKE, differing, own_shape
from patchlake.pipeline.lake.selection import Selection, select_rows
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.shown import shown

log = logging.getLogger(__name__)

# Of a group, and photos of each of them.
_FRAGMENTS, _PHOTOS = 3, 8
# Groups whose photos are read at a time, each of one fragment.
_READ_AT_ONCE = 4
# Of the inputs of a fragment whose photos keep their shape. They are in memory together, twice as
# they are stacked, and so are their embeddings in a worker that fits: 1.1 GB with ResNet-18.
_FRAGMENT_BYTES = 128 * 2**20
# Of the smallest input on which a size can be asked.
_TINY = Geometry((1, 1), None)

# (width, height) of an upright photo, in pixels.
Size = tuple[int, int]


def asked_shapes(
    source: Source,
    selections: Mapping[str, Selection],
    fragments: Fragments,
    settings: Settings,
    stride: int,
) -> dict[str, tuple[int, int]]:
    """Return (height, width) of each group's inputs, by `own_shape` of a few of its photos.

    Photos of other shapes are counted in a warning. A group of which no photo can be read gets a
    square, and is left to the fit, which says what is wrong with its images.

    Args:
        source: The lake.
        selections: Which rows of each group are trained on.
        fragments: The plan.
        settings: `image.pixels` of them.
        stride: Of the network's coarsest layer, in pixels.
    """
    pixels = settings.image.own_pixels
    groups = fragments.groups
    sample = partial(_sizes, source, selections)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        sizes = dict(zip(groups, pool.map(sample, map(fragments.of_group, groups)), strict=True))
    shapes = {g: own_shape(some or [(1, 1)], pixels, stride) for g, some in sizes.items()}
    square = own_shape([(pixels, pixels)], pixels, stride)
    shapes |= {group: square for group, some in sizes.items() if not some}
    for group, shape in shapes.items():
        _say(group, shape, sizes[group])
    return shapes


def _say(group: str, shape: tuple[int, int], sizes: Sequence[Size]) -> None:
    height, width = shape
    if not sizes:
        log.warning(
            "group %s: none of the photos that were asked for their shape can be read, so its "
            "inputs are %d x %d pixels (width x height)",
            *(shown(group), width, height),
        )
        return
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    of_photos = areas[(len(areas) - 1) // 2]
    log.info(
        "group %s: inputs of %d x %d pixels (width x height) for photos of some %d x %d",
        *(shown(group), width, height, *of_photos),
    )
    others = differing(sizes, shape)
    if others:
        log.warning(
            "group %s: %d of %d photos looked at differ from these inputs in the ratio of their "
            "sides by a factor of %.3g or more, and are resized to them all the same: give photos "
            "of another shape a group of their own, if they are another product or view",
            *(shown(group), others, len(sizes), ALIKE),
        )


def _sizes(source: Source, selections: Mapping[str, Selection], fragments: Fragments) -> list[Size]:
    """Return the sizes of some photos of a group that a fit learns from."""
    places = np.linspace(0, len(fragments) - 1, min(_FRAGMENTS, len(fragments))).round()
    found: list[Size] = []
    for place in places.astype(int).tolist():
        found += _sizes_in(source, selections, fragments[place])
    return found


def _sizes_in(
    source: Source, selections: Mapping[str, Selection], fragment: Fragment
) -> Iterable[Size]:
    rows = select_rows(source.read(fragment), selections[fragment.group], source.columns)
    count = min(_PHOTOS, len(rows))
    # A JPEG's size does not depend on the scale at which it is decoded.
    limits = replace(limits_of(source.limits), draft=True)
    for place in np.linspace(0, len(rows) - 1, count).round().astype(int).tolist():
        try:
            content = source.read_image(rows.slice(place, 1).to_pylist()[0])
            photo = decode_picture(content, limits, [_TINY], photo=False)
        except ImageError:
            continue
        yield photo.width, photo.height


def fitting_fragments(
    settings: Settings,
    geometries: Sequence[Geometry | Geometries],
    groups: Iterable[str],
    rotations: int = 1,
) -> Settings:
    """Return settings whose fragments hold no more pixels than memory is planned for.

    Only where photos keep their shape, are cut into tiles, or turned: `fragment_images` is what the
    user has set, or as many images as have 128 MiB of inputs, whichever is smaller. It depends on
    the models alone.

    Args:
        settings: Those of the job.
        geometries: Of its models.
        groups: That all models have.
        rotations: Inputs that a fit makes of each image.
    """
    is_usual = settings.image.tile is None and rotations == 1
    if is_usual and not any(isinstance(g, Geometries) for g in geometries):
        return settings
    inputs = [
        sum(3 * one.input_size[0] * one.input_size[1] for one in inputs_of(geometries, group))
        for group in groups
    ]
    largest = rotations * max(inputs, default=1)
    most = max(1, _FRAGMENT_BYTES // largest)
    if settings.fragment_images <= most:
        return settings
    log.info(
        "a fragment has %d images, and not fragment_images=%d: the inputs of an image are "
        "%.3g MiB, and those of a fragment at most %d MiB",
        *(most, settings.fragment_images, largest / 2**20, _FRAGMENT_BYTES // 2**20),
    )
    return settings.model_copy(update={"fragment_images": most})
