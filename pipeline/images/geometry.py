"""From the whole image to the model's input, and where that input lies in the image."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from patchlake.pipeline.errors import ConfigError, ImageError
from patchlake.pipeline.images.rotations import rotated

# Of the resized image, before its crop: a strip of 1 x 100000 pixels whose shorter side becomes 256
# would take 20 GB.
_MAX_RESIZED_PIXELS = 100_000_000

# How much finer than the input a photo is turned, along each side, where it is: bilinear values of
# the input's own pixels would be a blur that no photo has. Of inputs for which that would be more
# than `_MOST_TURNED` pixels, it is the input's own sides.
_FINER, _MOST_TURNED = 3, 2**24

# Every paper here smooths the anomaly map with this sigma, in pixels of the model's input.
MAP_SIGMA = 4.0

# Of longer sides of an input, the smoothing is made for the rows that are asked for alone: its
# matrix is the square of the side, 32 MiB for this one.
_DENSE_SIDE = 2048


@dataclass(frozen=True)
class Extent:
    """How a file lies in its upright picture that was decoded at a reduced scale."""

    # (width, height) of the file, upright, in its own pixels.
    size: tuple[int, int]
    # Left, top, right and bottom of the file in the picture, in the picture's pixels: the last ones
    # of a side that the scale does not divide are only in part the file's.
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, image: Image.Image) -> "Extent":
        """Return that of a picture that has the file's own pixels."""
        return cls(image.size, (0, 0, *image.size))


@dataclass(frozen=True)
class Geometry:
    """`resize`: the shorter side, or (height, width); then a square centre `crop`, or None."""

    resize: int | tuple[int, int]
    crop: int | None
    # Whether a frame that is much coarser than the input shows the highest value of each of its
    # pixels, and not that at its centre. Two geometries that differ in it make the same inputs.
    keeps_peaks: bool = field(default=False, compare=False)
    # By which the photo is turned within its own frame before it is resized, counter-clockwise.
    degrees: float = 0.0

    def __post_init__(self) -> None:
        smaller = self.resize if isinstance(self.resize, int) else min(self.resize)
        if self.crop is not None and self.crop > smaller:
            raise ConfigError(f"image.crop {self.crop} is larger than image.resize {self.resize}")
        if self.crop is None and isinstance(self.resize, int):
            raise ConfigError(
                f"image.resize {self.resize} keeps the aspect ratio, so inputs differ in size; "
                f"set image.crop, or image.resize=[{self.resize}, {self.resize}] to squash"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the model's input, in pixels."""
        if self.crop is not None:
            return self.crop, self.crop
        assert not isinstance(self.resize, int)
        return self.resize

    def of(self, group: str) -> "Geometry":  # noqa: ARG002 - as `Geometries`
        """Return that of a group: of all groups it is the same."""
        return self

    def apply(self, image: Image.Image, extent: Extent | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """Return the model's input. Bilinear with antialiasing, as in the papers' transforms.

        Args:
            image: RGB, or L: grey gives the bytes that it would give as RGB.
            extent: Of a picture at a reduced scale; None: it has the file's own pixels.

        Raises:
            ImageError: if the whole image, resized, would be too large for a crop of it.
        """
        extent = extent or Extent.whole(image)
        height, width = self.resized(*extent.size)
        if height * width > _MAX_RESIZED_PIXELS:
            raise ImageError(
                "too_large",
                f"{extent.size[0]}x{extent.size[1]} pixels become {width}x{height} with "
                f"image.resize {self.resize}; at most {_MAX_RESIZED_PIXELS} are resized",
            )
        if self.degrees:
            image, extent = self._turned(image, extent)
        resized = image.resize((width, height), Image.Resampling.BILINEAR, extent.box)
        if self.crop is not None:
            top, left = crop_offset(height, self.crop), crop_offset(width, self.crop)
            resized = resized.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(resized.convert("RGB"))

    def _turned(self, image: Image.Image, extent: Extent) -> tuple[Image.Image, Extent]:
        """Return the photo turned, at most `_FINER` times as fine as it will be resized to."""
        height, width = self.resized(*extent.size)
        finer = _FINER if height * width * _FINER**2 <= _MOST_TURNED else 1
        left, top, right, bottom = extent.box
        # No larger than it is.
        columns = max(1, min(math.ceil(right - left), finer * width))
        rows = max(1, min(math.ceil(bottom - top), finer * height))
        small = image.resize((columns, rows), Image.Resampling.BILINEAR, extent.box)
        turned = rotated(np.asarray(small), extent.size, self.degrees)
        return Image.fromarray(turned), Extent(extent.size, (0, 0, columns, rows))

    def to_frame(
        self,
        anomaly_map: Float32[np.ndarray, "rows columns"],
        image_size: tuple[int, int],
        frame_size: tuple[int, int],
    ) -> Float32[np.ndarray, "h w"]:
        """Return the anomaly map over the whole image, at another size.

        Bilinear to the model's input, Gaussian of sigma 4 there, then bilinear to the frame; the
        three are linear and separable, so each axis is one matrix. Frame pixels outside a crop,
        of which nothing is known, get the lowest value inside it. Where peaks are kept, a pixel of
        a frame of at most half the input's side has the highest of its values: the spot of a patch
        would lie between the centres of such pixels.

        Args:
            anomaly_map: One distance a patch.
            image_size: (width, height) of the image, pixels.
            frame_size: (height, width) of the result, pixels.
        """
        down_by, across_by = self._finer(frame_size)
        if down_by * across_by > 1:
            fine = frame_size[0] * down_by, frame_size[1] * across_by
            peaks = replace(self, keeps_peaks=False).to_frame(anomaly_map, image_size, fine)
            blocks = peaks.reshape(frame_size[0], down_by, frame_size[1], across_by)
            return np.asarray(blocks.max(axis=(1, 3)))
        input_height, input_width = self.input_size
        height, width = self.resized(*image_size)
        down, rows = _axis(anomaly_map.shape[0], input_height, height, frame_size[0])
        across, columns = _axis(anomaly_map.shape[1], input_width, width, frame_size[1])
        inside: np.ndarray = (down @ anomaly_map @ across.T).astype(np.float32)
        if inside.shape == frame_size:
            return inside
        frame = np.full(frame_size, inside.min(), np.float32)
        frame[rows, columns] = inside
        return frame

    def _finer(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return how often each axis of a frame goes into the input, where peaks are kept."""
        if not self.keeps_peaks:
            return 1, 1
        down, across = (s // f for s, f in zip(self.input_size, frame_size, strict=True))
        return max(1, down), max(1, across)

    def over_frame(
        self,
        inside: Bool[np.ndarray, "rows columns"],
        image_size: tuple[int, int],
        frame_size: tuple[int, int],
    ) -> Bool[np.ndarray, "h w"]:
        """Return which pixels of a frame show a pixel of the input that is marked.

        Args:
            inside: A truth value for each pixel of the model's input.
            image_size: (width, height) of the image, pixels.
            frame_size: (height, width) of the frame over the whole image, pixels.
        """
        height, width = self.resized(*image_size)
        rows = _places(frame_size[0], height, self.input_size[0])
        columns = _places(frame_size[1], width, self.input_size[1])
        found = inside[np.maximum(rows, 0)[:, np.newaxis], np.maximum(columns, 0)]
        return np.asarray(found & (rows >= 0)[:, np.newaxis] & (columns >= 0))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (height, width) of a whole image, before its crop; all in pixels."""
        if not isinstance(self.resize, int):
            return self.resize
        # As torchvision: the longer side is truncated.
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)


@dataclass(frozen=True)
class Geometries:
    """Of each group its own: the whole photo, resized to a shape that the group's photos have."""

    # (group, (height, width)), by group.
    shapes: tuple[tuple[str, tuple[int, int]], ...]

    def of(self, group: str) -> Geometry:
        """Return that of a group. Raises `LookupError` of one that has none."""
        return Geometry(dict(self.shapes)[group], None, keeps_peaks=True)


def geometry_of(
    resize: int | tuple[int, int] | Literal["auto"],
    crop: int | None,
    shapes: Mapping[str, tuple[int, int]],
    *,
    is_cut: bool = False,
) -> Geometry | Geometries:
    """Return the geometry of a model.

    Args:
        resize: The setting `image.resize`.
        crop: The setting `image.crop`.
        shapes: Group -> (height, width) of its inputs, where `resize` is `auto`.
        is_cut: Whether there are tiles (`image.tile`), for which peaks are kept, too.
    """
    if resize == "auto":
        return Geometries(tuple(sorted(shapes.items())))
    return Geometry(resize, crop, keeps_peaks=is_cut)


def inputs_of(geometries: Sequence[Geometry | Geometries], group: str) -> tuple[Geometry, ...]:
    """Return the inputs that are made of a group's photo for several models, each of them once."""
    return tuple(dict.fromkeys(one.of(group) for one in geometries))


def turned_inputs(geometry: Geometry, count: int) -> tuple[Geometry, ...]:
    """Return the inputs of a photo and of its copies, turned by 1, 2, ... parts of a full turn."""
    return tuple(replace(geometry, degrees=360 * number / count) for number in range(count))


def join_inputs(
    image: Image.Image, geometries: Sequence[Geometry], extent: Extent | None = None
) -> UInt8[np.ndarray, "..."]:
    """Return the inputs of several models as one array: (h, w, 3) of one, else flat, in order.

    Arguments and errors are those of `Geometry.apply`.
    """
    inputs = [geometry.apply(image, extent) for geometry in geometries]
    return inputs[0] if len(inputs) == 1 else np.concatenate([pixels.ravel() for pixels in inputs])


def input_shape(geometries: Sequence[Geometry]) -> tuple[int, ...]:
    """Return the shape of what `join_inputs` returns."""
    shapes = [(*geometry.input_size, 3) for geometry in geometries]
    return shapes[0] if len(shapes) == 1 else (sum(h * w * c for h, w, c in shapes),)


def split_inputs(
    joined: UInt8[np.ndarray, "images ..."], geometries: Sequence[Geometry]
) -> list[UInt8[np.ndarray, "images _h _w 3"]]:
    """Return the inputs (images, h, w, 3) of each geometry, from images of `join_inputs`."""
    if len(geometries) == 1:
        return [joined]
    shapes = [(*geometry.input_size, 3) for geometry in geometries]
    ends = np.cumsum([h * w * c for h, w, c in shapes])[:-1]
    parts = np.split(joined, ends, axis=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def crop_offset(resized: int, crop: int) -> int:
    """Return where a centre crop of a side begins, in pixels of the resized picture."""
    # As torchvision's CenterCrop: a half is rounded to the even number.
    return round((resized - crop) / 2)


def _places(frame: int, resized: int, input_size: int) -> Int64[np.ndarray, " frame"]:
    """Return the input's pixel at the centre of each of a frame's, on one axis; -1 outside."""
    centres = (np.arange(frame) + 0.5) * (resized / frame) - crop_offset(resized, input_size)
    is_seen = (centres >= 0) & (centres < input_size)
    return np.where(is_seen, np.floor(centres), -1).astype(np.int64)


# 64 sizes of 512 rows and 28 columns: 7 MB.
@lru_cache(maxsize=64)
def _axis(patches: int, input_size: int, resized: int, frame: int) -> tuple[np.ndarray, slice]:
    """Return the operator of one axis, and which frame pixels it fills."""
    # Centres of the frame's pixels, in pixels of the input.
    centres = (np.arange(frame) + 0.5) * (resized / frame) - crop_offset(resized, input_size)
    inside = np.flatnonzero((centres >= 0) & (centres < input_size))
    if not inside.size:
        # The crop of a long image lies between the centres of a coarse frame's pixels.
        inside = np.abs(centres - input_size / 2).argmin(keepdims=True)
    # As `bilinear_matrix`, at places that need not span the axis. Rows are joined two by two: each
    # of thousands of sizes of photos has an operator of its own, and as a product it takes 2 ms.
    places = np.clip(centres[inside] - 0.5, 0, input_size - 1)
    before = np.minimum(places.astype(np.intp), max(0, input_size - 2))
    share = (places - before)[:, np.newaxis]
    behind = np.minimum(before + 1, input_size - 1)
    if input_size > _DENSE_SIDE:
        from patchlake.pipeline.maths.resampling import smoothed_rows

        first, second = (
            smoothed_rows(rows, input_size, patches, MAP_SIGMA) for rows in (before, behind)
        )
    else:
        smoothed = _smoothed(patches, input_size)
        first, second = smoothed[before], smoothed[behind]
    operator = first * (1 - share) + second * share
    return operator, slice(int(inside[0]), int(inside[-1]) + 1)


@lru_cache(maxsize=8)
def _smoothed(patches: int, input_size: int) -> np.ndarray:
    """Return the operator of one axis from the map to the smoothed input."""
    # Of scipy, which decoding processes would take longer to import than all the rest.
    from patchlake.pipeline.maths.resampling import bilinear_matrix, gaussian_matrix

    smoothed: np.ndarray = gaussian_matrix(input_size, MAP_SIGMA) @ bilinear_matrix(
        input_size, patches
    )
    return smoothed
