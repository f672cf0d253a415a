"""Patch embeddings, against the authors' unfolding code and an explicit loop."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.patches import concat_embedding, official_embedding


def random_maps(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def authors_embedding(feature_maps):
    """`PatchCore._embed` of patchcore-inspection, with patch size 3, 1024 and 1024 dimensions."""
    layers = []
    for maps in feature_maps:
        images, channels, height, width = maps.shape
        unfolded = functional.unfold(maps, kernel_size=3, stride=1, padding=1)
        layers.append(unfolded.reshape(images, channels, 3, 3, height, width))
    grid = layers[0].shape[-2:]
    pooled = []
    for patches in layers:
        images, channels, _, _, height, width = patches.shape
        flat = patches.reshape(images, channels * 9, height, width)
        aligned = functional.interpolate(flat, size=grid, mode="bilinear", align_corners=False)
        vectors = aligned.permute(0, 2, 3, 1).reshape(-1, 1, channels * 9)
        pooled.append(functional.adaptive_avg_pool1d(vectors, 1024).squeeze(1))
    stacked = torch.stack(pooled, dim=1).reshape(len(pooled[0]), 1, -1)
    return functional.adaptive_avg_pool1d(stacked, 1024).reshape(images, *grid, 1024)


@pytest.mark.parametrize(
    ("images", "fine", "coarse"),
    [(1, (28, 28), (14, 14)), (2, (8, 8), (4, 4)), (2, (7, 10), (4, 5)), (1, (1, 1), (1, 1))],
)
def test_the_closed_form_equals_the_authors_code(images, fine, coarse):
    maps = random_maps((images, 512, *fine), (images, 1024, *coarse))

    embedded = official_embedding(maps)

    assert embedded.shape == (images, *fine, 1024)
    torch.testing.assert_close(embedded, authors_embedding(maps), rtol=0, atol=1e-4)


def mean_of_neighbourhood(maps, neighbourhood):
    """Eq. 3 with zeros outside the map, one position at a time."""
    reach = neighbourhood // 2
    pooled = np.zeros_like(maps)
    height, width = maps.shape[-2:]
    for y in range(height):
        for x in range(width):
            near = maps[
                :,
                :,
                max(y - reach, 0) : min(y + reach + 1, height),
                max(x - reach, 0) : min(x + reach + 1, width),
            ]
            pooled[:, :, y, x] = near.sum(axis=(2, 3)) / neighbourhood**2
    return pooled


def bilinear_at(maps, y, x, grid):
    """The value where the centre of pixel (y, x) of the grid lies, pixels being areas."""
    value = 0.0
    (y0, y_share), (x0, x_share) = (
        divmod(min(max((at + 0.5) * size / wanted - 0.5, 0), size - 1), 1)
        for at, size, wanted in zip((y, x), maps.shape[-2:], grid, strict=True)
    )
    for dy, y_weight in ((0, 1 - y_share), (1, y_share)):
        for dx, x_weight in ((0, 1 - x_share), (1, x_share)):
            if y_weight * x_weight > 0:
                value = value + y_weight * x_weight * maps[:, :, int(y0) + dy, int(x0) + dx]
    return value


@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_concat_averages_neighbourhoods_and_aligns_to_the_finest_grid(neighbourhood):
    maps = random_maps((2, 3, 6, 8), (2, 5, 3, 4), (2, 2, 2, 3))
    pooled = [mean_of_neighbourhood(m.double().numpy(), neighbourhood) for m in maps]

    embedded = concat_embedding(maps, neighbourhood)

    assert embedded.shape == (2, 6, 8, 10)
    for y in range(6):
        for x in range(8):
            expected = np.concatenate([bilinear_at(p, y, x, (6, 8)) for p in pooled], axis=1)
            np.testing.assert_allclose(embedded[:, y, x], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [(64, 128), (512,), (1024, 512), (512, 1024, 2048)])
def test_other_channels_than_the_authors_have_no_official_embedding(channels):
    maps = random_maps(*((1, count, 4, 4) for count in channels))
    with pytest.raises(ConfigError, match=r"use method\.embedding=concat"):
        official_embedding(maps)
