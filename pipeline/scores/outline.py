"""The outline of a region of interest, over a heatmap."""

import numpy as np
from jaxtyping import Bool, UInt8

# Cyan: no colour of the heatmap's scale, and seen on black, grey and white.
_LINE = (0, 200, 220)


def outlined(
    picture: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture with a line of two pixels where a region ends.

    The picture's own border is no end of a region.

    Args:
        picture: Red, green and blue.
        inside: Which of its pixels are in the region.
    """
    edge = np.zeros(inside.shape, bool)
    across, down = inside[:, 1:] != inside[:, :-1], inside[1:] != inside[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    drawn = picture.copy()
    drawn[edge] = _LINE
    return drawn
