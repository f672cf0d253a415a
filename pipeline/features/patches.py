"""Locally aware patch embeddings of PatchCore (Roth et al., CVPR 2022, section 3.1).

    phi(layer, y, x) = mean of the layer's features in the p x p neighbourhood of (y, x)     (Eq. 3)

Deeper layers are resampled bilinearly to the first layer's grid. Then the layers are joined, either
by `concat` (their channels side by side) or by `official` (as the authors' code does it, in 1024
dimensions).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.errors import ConfigError

# The channels of layer2 and layer3 of (wide) ResNet-50, for which the closed form below holds.
OFFICIAL_CHANNELS = (512, 1024)


def concat_embedding(feature_maps: Sequence[Tensor], neighbourhood: int = 3) -> Tensor:
    """Return patch embeddings (images, rows, columns, sum of channels).

    Pooling pads with zeros that count in the mean, as the authors' unfold does.

    Args:
        feature_maps: (images, channels, rows, columns), the finest grid first.
        neighbourhood: Side p of the averaged square, odd.
    """
    grid = feature_maps[0].shape[-2:]
    pooled = [mean_of_square(maps, neighbourhood) for maps in feature_maps]
    return torch.cat([_resample(maps, grid) for maps in pooled], dim=1).permute(0, 2, 3, 1)


def official_embedding(feature_maps: Sequence[Tensor]) -> Tensor:
    """Return the authors' embedding (images, rows, columns, 1024) in closed form.

    Their code unfolds 3 x 3 neighbourhoods (512 * 9 = 4608 and 1024 * 9 values a patch), pools
    each to 1024 (`adaptive_avg_pool1d`), stacks the two and pools the 2048 to 1024. Written out:

    * layer2: 4608 / 1024 = 4.5, so consecutive windows of 5 share the neighbourhood's centre, and
      the second pooling joins two of them: each channel convolved with a 3 x 3 kernel of 0.1
      with 0.2 at the centre;
    * layer3: 9 values a window is the 3 x 3 mean, then the mean of channels 2j and 2j + 1.

    All of it is linear, so layer3 can be resampled last, which gives the same numbers and takes a
    ninth of the memory.

    Raises:
        ConfigError: for other channels than 512 and 1024, where this closed form does not hold.
    """
    channels = tuple(maps.shape[1] for maps in feature_maps)
    if channels != OFFICIAL_CHANNELS:
        raise ConfigError(
            f"method.embedding=official is defined for layers of {OFFICIAL_CHANNELS} channels, "
            f"this backbone gives {channels}; use method.embedding=concat"
        )
    fine, coarse = feature_maps
    kernel = torch.full((3, 3), 0.1, dtype=fine.dtype, device=fine.device)
    kernel[1, 1] = 0.2
    weights = kernel.expand(channels[0], 1, 3, 3)
    near = functional.conv2d(fine, weights, padding=1, groups=channels[0])
    pooled = mean_of_square(coarse, 3)
    pairs = (pooled[:, 0::2] + pooled[:, 1::2]) / 2
    return torch.cat([near, _resample(pairs, fine.shape[-2:])], dim=1).permute(0, 2, 3, 1)


def pooled(feature_map: Tensor) -> Tensor:
    """Return the mean over rows and columns (images, channels) of a feature map."""
    return feature_map.mean(dim=(-2, -1))


def mean_of_square(maps: Tensor, neighbourhood: int) -> Tensor:
    """Return maps (images, channels, rows, columns) whose values are means over a square.

    Beyond the border are zeros, which count.

    Args:
        maps: The same shape.
        neighbourhood: Side of the square, odd.
    """
    return functional.avg_pool2d(maps, neighbourhood, stride=1, padding=neighbourhood // 2)


def _resample(maps: Tensor, grid: torch.Size) -> Tensor:
    if maps.shape[-2:] == grid:
        return maps
    return functional.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
