"""Heatmaps: the anomaly map as colour over the photo, on one fixed scale for each group.

The scale comes from the training images, each measured against the bank without its own rows. So
the colours mean the same every night, and good products stay uncoloured. What is above the
threshold of pixels has an outline; what is written below it all, `pipeline.scores.caption` says.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

# Violet over magenta and orange to pale yellow, rising in lightness: readable in grey and with
# colour-blind eyes. (position, red, green, blue)
_COLOURS = np.array(
    [
        (0.0, 110, 20, 140),
        (0.35, 205, 40, 110),
        (0.7, 250, 120, 40),
        (1.0, 255, 245, 150),
    ]
)
# Below 1, so that the picture can be seen through the strongest colour, too.
_OPACITY = 0.75


@dataclass(frozen=True)
class ColourScale:
    """The values of the smoothed map at which colour begins (`low`) and is full (`high`)."""

    low: float
    high: float

    @classmethod
    def of_normal(cls, peaks: Float32[np.ndarray, " images"]) -> "ColourScale":
        """Return the scale for a group.

        Colour begins at the 95th percentile of the peaks, so that one normal image in twenty has a
        coloured spot, and is full at one and a half times that value. On real tiles the clearest
        defects reach 1.6 times.

        Args:
            peaks: The highest point of the smoothed map of each training image.
        """
        low = float(np.quantile(peaks, 0.95))
        # If all images are equal, all distances are 0. Any scale of positive width will do then.
        return cls(low, 1.5 * low if low > 0 else 1.0)

    def strength(self, frame: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Return 0 at `low` and below, 1 at `high` and above."""
        strength: np.ndarray = np.clip((frame - self.low) / (self.high - self.low), 0, 1)
        return strength.astype(np.float32, copy=False)


def overlay(
    photo: UInt8[np.ndarray, "h w 3"], frame: Float32[np.ndarray, "h w"], scale: ColourScale
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the photo with colour where the map exceeds the scale's low end.

    Within 2 levels of what `blended` says; strength is taken in 255 steps of its root.

    Args:
        photo: What it is drawn on (`photo_pixels` of `pipeline.images.pictures`); stays as it is.
        frame: The anomaly map, of the same size.
        scale: The group's.
    """
    picture = photo.copy()
    for begin in range(0, len(frame), _BAND):
        rows = slice(begin, begin + _BAND)
        coloured = np.flatnonzero((frame[rows] > scale.low).any(axis=0))
        if len(coloured):
            columns = slice(coloured[0], coloured[-1] + 1)
            # Of the root, as opacity is: its steps are equal then.
            root = np.sqrt(scale.strength(frame[rows, columns]))
            steps = np.rint(root * (_STEPS - 1)).astype(np.uint16) * _LEVELS
            levels = picture[rows, columns]
            for channel, table in enumerate(_colours()):
                # What has no colour is at step 0, which leaves a level as it is.
                levels[..., channel] = table[steps + levels[..., channel]]
    return picture


# Rows at a time: little is looked at that has no colour, and arrays stay in the processor's caches.
_BAND = 32
# A step and a level are the two bytes of one uint16.
_STEPS, _LEVELS = 256, np.uint16(256)


@lru_cache(1)
def _colours() -> UInt8[np.ndarray, "3 65536"]:
    """Return what becomes of each level of red, green and blue at each strength.

    An entry's place is its step of strength times 256, and its level.
    """
    strength = (np.arange(_STEPS, dtype=np.float32) / (_STEPS - 1)) ** 2
    levels = np.arange(256, dtype=np.uint8)[:, None]
    every = np.broadcast_to(levels, (_STEPS, 256, 3))
    mixed = blended(every, np.broadcast_to(strength[:, None], (_STEPS, 256)))
    return np.ascontiguousarray(mixed.transpose(2, 0, 1)).reshape(3, -1)


def blended(
    photo: UInt8[np.ndarray, "h w 3"], strength: Float32[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a photo with the colour of a strength (0 to 1) over it.

    It takes 6 ms for a picture of 512 x 209 pixels, so it is asked once for all there can be.
    """
    colour = np.stack(
        [np.interp(strength, _COLOURS[:, 0], _COLOURS[:, i]) for i in (1, 2, 3)], axis=-1
    )
    # Opacity rises faster than colour, so that the lower end is visible on bright pictures too.
    opacity = _OPACITY * np.sqrt(strength)[..., None]
    mixed = np.asarray(photo, np.float32) * (1 - opacity) + colour * opacity
    picture: np.ndarray = np.rint(mixed).astype(np.uint8)
    return picture


def outline(picture: UInt8[np.ndarray, "h w 3"], marked: Bool[np.ndarray, "h w"]) -> None:
    """Draw a line around each area into the picture: white, with black beside it.

    One of the two is seen on any photo of three pixels or more a side. The white line is the
    outermost pixel of an area, also where the area ends with the picture: so an area of one pixel
    has a line, and so has one that fills the picture.

    Args:
        picture: What is drawn into, in C order.
        marked: The areas (`is_marked` of `pipeline.scores.regions`).
    """
    line = marked & ~_shrunk(marked)
    pixels = picture.reshape(-1, 3)
    for area, level in ((_grown(line), _DARK), (line, _LIGHT)):
        # By their numbers, in a third of the time that a mask takes.
        pixels[np.flatnonzero(area)] = level


_LIGHT, _DARK = 255, 0


def _grown(area: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the area with all pixels around it."""
    down = area.copy()
    down[1:] |= area[:-1]
    down[:-1] |= area[1:]
    grown = down.copy()
    grown[:, 1:] |= down[:, :-1]
    grown[:, :-1] |= down[:, 1:]
    return grown


def _shrunk(area: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of an area all of whose neighbours are of it, and none at the border."""
    inside = np.zeros_like(area)
    inside[1:-1, 1:-1] = ~_grown(~area)[1:-1, 1:-1]
    return inside


def to_jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return the picture as JPEG, of which two by two pixels share a hue.

    On 512 x 552 pixels it takes 0.7 ms and 44 KB, where PNG takes 15 ms and 274 KB. With a hue for
    each pixel it would be 1.0 ms and 51 KB, and the photo that is drawn on has none.
    """
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "JPEG", quality=90, subsampling="4:2:0")
    return sink.getvalue()
