"""Regions: where in an anomalous image its anomaly map is too high."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

# Of one image; the largest are kept. A map of noise has hundreds.
MOST = 100


@dataclass(frozen=True)
class Region:
    """A connected area, in pixels of the upright image."""

    # Of the box: its left and upper edge, and its extent.
    x: int
    y: int
    width: int
    height: int
    area: int
    # Highest value of the smoothed map in it.
    peak: float
    centre_x: float
    centre_y: float


def is_marked(frame: Float32[np.ndarray, "h w"], threshold: float) -> Bool[np.ndarray, "h w"]:
    """Return which pixels of an anomalous image are in a region.

    Those above the threshold. Where none is, which happens because a score is not the height of the
    map, it is what belongs to the highest point: all that is connected with it and above half of
    its height over the image's median (full width at half maximum). So no anomalous image is
    without a region.

    Args:
        frame: The smoothed map over the whole image.
        threshold: Of pixels.
    """
    marked = np.asarray(frame > threshold)
    if marked.any():
        return marked
    peak = frame.max()
    above = frame >= (float(peak) + float(np.median(frame))) / 2
    labels, _ = ndimage.label(above, structure=_CONNECTED)
    return np.asarray(labels == labels[np.unravel_index(frame.argmax(), frame.shape)])


# A pixel is connected with all eight around it, as in the metrics of the masks.
_CONNECTED = np.ones((3, 3), bool)


def regions_of(
    frame: Float32[np.ndarray, "h w"], marked: Bool[np.ndarray, "h w"], size: tuple[int, int]
) -> list[Region]:
    """Return the regions of an image, the largest first, and of equal ones the higher first.

    Args:
        frame: The smoothed map over the whole image, at any size.
        marked: From `is_marked`.
        size: (width, height) of the upright image, pixels, in which regions are returned. An edge
            of a box is rounded outwards.
    """
    width, height = size
    across, down = width / frame.shape[1], height / frame.shape[0]
    labels, _ = ndimage.label(marked, structure=_CONNECTED)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = box
        # Within its box: over the whole frame the same takes 30 ms, at 512 x 512 pixels.
        inside = labels[box] == number
        ys, xs = (at + side.start for at, side in zip(np.nonzero(inside), box, strict=True))
        left, top = int(columns.start * across), int(rows.start * down)
        right = min(width, int(np.ceil(columns.stop * across)))
        bottom = min(height, int(np.ceil(rows.stop * down)))
        found.append(
            Region(
                *(left, top, right - left, bottom - top),
                area=max(1, round(len(ys) * across * down)),
                peak=float(frame[box][inside].max()),
                centre_x=float((xs.mean() + 0.5) * across),
                centre_y=float((ys.mean() + 0.5) * down),
            )
        )
    found.sort(key=lambda one: (-one.area, -one.peak, one.y, one.x))
    return found[:MOST]
