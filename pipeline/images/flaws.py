"""Synthetic defects on good photos, with exact masks: what settings can be compared by.

They look like no defect in particular, and are drawn of four kinds:

* `patch`: a rectangle of the photo at another place of it, a little brighter or darker (Li, Sohn,
  Yoon, Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR
  2021, arXiv 2104.04015);
* `texture`: another photo shines through a blob of Perlin noise (Zavrtanik, Kristan, Skočaj, "DRAEM
  - A discriminatively trained reconstruction embedding for surface anomaly detection", ICCV 2021,
  arXiv 2108.07610, where the other photo is one of the textures of DTD: here it is one of the same
  product, with its colours inverted or exchanged);
* `scratch`: a thin line that wanders, darker or brighter than what it crosses;
* `spot`: a small ellipse of one colour, which is grey in a grey photo.

Sizes are log-uniform, in shares of the photo's shorter side: a patch and a blob have the area of a
square of 0.02 to 0.15 of it, a scratch is 0.05 to 0.5 long and 0.004 to 0.02 wide, a spot's mean
diameter is 0.01 to 0.1. So they have the same sizes for any input that a model makes of the photo.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from numpy.random import Generator

KINDS = ("patch", "texture", "scratch", "spot")

_BLOB = (0.02, 0.15)
_LENGTH, _THICKNESS = (0.05, 0.5), (0.004, 0.02)
_SPOT = (0.01, 0.1)
# Of a defect that nobody can see, another one is drawn: mean change within it, in grey levels.
_VISIBLE, _ATTEMPTS = 8.0, 20
# Of the box around a blob, the share that the blob covers.
_FILLED = 0.35
# Straight pieces of a scratch, and by how much each turns at the most, in radians.
_PIECES, _BEND = 12, 0.5

# Two of them are not of one size.
Photo = UInt8[np.ndarray, "_h _w 3"]


@dataclass(frozen=True)
class Flawed:
    """A photo with a defect, and where it is."""

    pixels: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class _Layer:
    """What is laid over a part of a photo."""

    top: int
    left: int
    # Of each pixel the share that is covered, 0 to 1.
    cover: Float64[np.ndarray, "rows columns"]
    # What is seen there, and how opaque it is, 0 to 1.
    seen: np.ndarray
    opacity: float

    def over(self, photo: Photo) -> Flawed:
        """Return the photo with this on it."""
        rows, columns = self.cover.shape
        box = np.s_[self.top : self.top + rows, self.left : self.left + columns]
        share = (self.cover * self.opacity)[..., np.newaxis]
        pixels, mask = photo.copy(), np.zeros(photo.shape[:2], np.bool_)
        mixed = photo[box] * (1 - share) + np.clip(self.seen, 0, 255) * share
        pixels[box] = np.rint(mixed).astype(np.uint8)
        mask[box] = self.cover >= 0.5  # noqa: PLR2004 - half of a pixel
        return Flawed(pixels, mask)


def flawed(photo: Photo, kind: str, rng: Generator, other: Photo) -> Flawed:
    """Return a photo with one defect that can be seen.

    Args:
        photo: A good one, of 16 pixels a side at least.
        kind: One of `KINDS`.
        rng: All that is drawn is drawn from it.
        other: Another photo, of which a `texture` is made.
    """
    for _ in range(_ATTEMPTS):
        found = _DRAWN[kind](photo, rng, other).over(photo)
        if found.mask.any():
            change = np.abs(found.pixels[found.mask].astype(int) - photo[found.mask])
            if change.mean() >= _VISIBLE:
                break
    return found


def _patch(photo: Photo, rng: Generator, other: Photo) -> _Layer:  # noqa: ARG001 - as the others
    side, ratio = _log_uniform(rng, *_BLOB), _log_uniform(rng, 1 / 3, 3)
    shorter = min(photo.shape[:2])
    size = [side * shorter * math.sqrt(ratio), side * shorter / math.sqrt(ratio)]
    rows, columns = (max(2, round(one)) for one in size)
    rows, columns = min(rows, photo.shape[0] // 2), min(columns, photo.shape[1] // 2)
    (top, left), (from_top, from_left) = (_place(photo, rng, rows, columns) for _ in range(2))
    taken = photo[from_top : from_top + rows, from_left : from_left + columns]
    seen = taken * rng.uniform(0.9, 1.1)
    return _Layer(top, left, np.ones((rows, columns)), seen, 1.0)


def _texture(photo: Photo, rng: Generator, other: Photo) -> _Layer:
    side = _log_uniform(rng, *_BLOB) * min(photo.shape[:2]) / math.sqrt(_FILLED)
    rows, columns = (min(max(4, round(side)), length) for length in photo.shape[:2])
    y, x = (np.linspace(-1, 1, count) for count in (rows, columns))
    cells = int(rng.integers(2, 7))
    height = perlin(rows, columns, cells, rng) - (y[:, np.newaxis] ** 2 + x**2)
    cover = (height >= np.quantile(height, 1 - _FILLED)).astype(np.float64)
    source = np.resize(other, (max(rows, other.shape[0]), max(columns, other.shape[1]), 3))
    top, left = _place(source, rng, rows, columns)
    seen = source[top : top + rows, left : left + columns][..., rng.permutation(3)]
    if rng.random() < 0.5:  # noqa: PLR2004 - every second one
        seen = 255 - seen
    return _Layer(*_place(photo, rng, rows, columns), cover, seen, float(rng.uniform(0.3, 0.9)))


def _scratch(photo: Photo, rng: Generator, other: Photo) -> _Layer:  # noqa: ARG001
    shorter = min(photo.shape[:2])
    length, width = (_log_uniform(rng, *one) * shorter for one in (_LENGTH, _THICKNESS))
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.uniform(-_BEND, _BEND, _PIECES))
    steps = length / _PIECES * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    points -= points.min(axis=0) - width
    size = np.ceil(points.max(axis=0) + width).astype(int)
    rows, columns = (min(max(3, int(s)), most) for s, most in zip(size, photo.shape, strict=False))
    cover = np.clip(max(1.0, width) / 2 + 0.5 - _distance(rows, columns, points), 0, 1)
    top, left = _place(photo, rng, rows, columns)
    below = photo[top : top + rows, left : left + columns].astype(np.float64)
    # Darker, or brighter, and never what it was.
    factor = rng.uniform(0.2, 0.75) if rng.random() < 0.5 else rng.uniform(1.35, 2.5)  # noqa: PLR2004
    return _Layer(top, left, cover, below * factor, 1.0)


def _spot(photo: Photo, rng: Generator, other: Photo) -> _Layer:  # noqa: ARG001
    diameter = max(2.0, _log_uniform(rng, *_SPOT) * min(photo.shape[:2]))
    ratio = _log_uniform(rng, 1 / 2, 2)
    radii = diameter / 2 * math.sqrt(ratio), diameter / 2 / math.sqrt(ratio)
    rows, columns = (min(math.ceil(2 * r) + 2, n) for r, n in zip(radii, photo.shape, strict=False))
    y, x = (np.arange(count) + 0.5 - count / 2 for count in (rows, columns))
    inside = np.hypot((y / radii[0])[:, np.newaxis], x / radii[1])
    cover = np.clip((1 - inside) * min(radii) + 0.5, 0, 1)
    colour = rng.uniform(0, 255, 3)
    if (photo == photo[..., :1]).all():
        # A camera that sees grey sees a grey spot.
        colour[:] = colour.mean()
    seen = np.broadcast_to(colour, (rows, columns, 3))
    return _Layer(*_place(photo, rng, rows, columns), cover, seen, float(rng.uniform(0.4, 1)))


_DRAWN: dict[str, Callable[[Photo, Generator, Photo], _Layer]] = {
    "patch": _patch,
    "texture": _texture,
    "scratch": _scratch,
    "spot": _spot,
}


def perlin(
    rows: int, columns: int, cells: int, rng: Generator
) -> Float64[np.ndarray, "rows columns"]:
    """Return gradient noise, about -0.7 to 0.7 (Perlin, "Improving noise", SIGGRAPH 2002).

    Args:
        rows: Of the result.
        columns: Of the result.
        cells: Of the lattice, each way.
        rng: Of the gradients.
    """
    angles = rng.uniform(0, 2 * math.pi, (cells + 1, cells + 1))
    y, x = ((np.arange(count) + 0.5) / count * cells for count in (rows, columns))
    top, left = y.astype(int), x.astype(int)
    down, across = (y - top)[:, np.newaxis], (x - left)[np.newaxis]

    def of_corner(below: int, right: int) -> np.ndarray:
        angle = angles[top + below][:, left + right]
        found: np.ndarray = np.sin(angle) * (down - below) + np.cos(angle) * (across - right)
        return found

    fade_down, fade_across = (t**3 * (6 * t**2 - 15 * t + 10) for t in (down, across))
    upper = of_corner(0, 0) * (1 - fade_across) + of_corner(0, 1) * fade_across
    lower = of_corner(1, 0) * (1 - fade_across) + of_corner(1, 1) * fade_across
    return np.asarray(upper * (1 - fade_down) + lower * fade_down)


def _distance(rows: int, columns: int, points: np.ndarray) -> Float64[np.ndarray, "rows columns"]:
    """Return how far each pixel's centre is from a line through points (y, x), in pixels."""
    y, x = np.mgrid[:rows, :columns] + 0.5
    nearest = np.full((rows, columns), np.inf)
    for (y0, x0), (y1, x1) in pairwise(points):
        along = ((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / max(
            1e-12, (y1 - y0) ** 2 + (x1 - x0) ** 2
        )
        along = np.clip(along, 0, 1)
        nearest[:] = np.minimum(
            nearest, np.hypot(y - y0 - along * (y1 - y0), x - x0 - along * (x1 - x0))
        )
    return nearest


def _place(photo: np.ndarray, rng: Generator, rows: int, columns: int) -> tuple[int, int]:
    """Return top and left of a box somewhere in a photo."""
    return (
        int(rng.integers(0, photo.shape[0] - rows + 1)),
        int(rng.integers(0, photo.shape[1] - columns + 1)),
    )


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
