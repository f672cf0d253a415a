"""Heatmaps: the anomaly map as colour over the picture, on one fixed scale for each group.

The scale comes from the training images, each measured against the bank without its own rows. So
the colours mean the same every night, and good products stay uncoloured.
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
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

    def strength(self, frame: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return 0 at `low` and below, 1 at `high` and above."""
        strength: np.ndarray = np.clip((frame - self.low) / (self.high - self.low), 0, 1)
        return strength.astype(np.float32)


def overlay(
    grey: UInt8[np.ndarray, "h w"], frame: Float32[np.ndarray, "h w"], scale: ColourScale
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the picture with colour where the map exceeds the scale's low end.

    Args:
        grey: What it is drawn on (`grey_picture` of `pipeline.images.pictures`).
        frame: The anomaly map, of the same size.
        scale: The group's.
    """
    strength = scale.strength(frame)
    colour = np.stack(
        [np.interp(strength, _COLOURS[:, 0], _COLOURS[:, i]) for i in (1, 2, 3)], axis=-1
    )
    # Opacity rises faster than colour, so that the lower end is visible on bright pictures too.
    opacity = _OPACITY * np.sqrt(strength)[..., None]
    blended = np.asarray(grey, np.float32)[..., None] * (1 - opacity) + colour * opacity
    picture: np.ndarray = np.rint(blended).astype(np.uint8)
    return picture


def to_png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return the picture as PNG."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG", compress_level=4)
    return sink.getvalue()
