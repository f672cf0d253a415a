"""Features of patches outside are those of the nearest patch inside, in maps and in embeddings."""

import numpy as np
import pytest
import torch

from patchlake.pipeline.features.backbone import Backbone
from patchlake.pipeline.features.confined import confined_embeddings, confined_maps
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.maths.interior import Interior


def interior(seed: int) -> Interior:
    """Of 24 x 18 pixels, in blocks, so that some cells of a grid are inside."""
    rng = np.random.default_rng(seed)
    return Interior.of(np.kron(rng.random((4, 3)) < 0.4, np.ones((6, 6), bool)))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", [(4, 3), (8, 6), (1, 1), (5, 7)])
def test_a_map_has_at_each_place_what_is_at_its_source(grid: tuple[int, int], order):
    interiors = [interior(1), interior(2), Interior.of(np.ones((24, 18), bool))]
    # Behind the images there are those that fill a batch up.
    maps = torch.rand(5, 3, *grid).to(memory_format=order)
    before = maps.clone()
    found = confined_maps(maps, interiors)
    for image, one in enumerate(interiors):
        flat = before[image].reshape(3, -1)
        assert torch.equal(found[image].reshape(3, -1), flat[:, one.sources(grid).tolist()])
    assert torch.equal(found[2:], before[2:])
    assert torch.equal(maps, before)
    embedded = before.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(confined_embeddings(embedded, interiors), found.permute(0, 2, 3, 1))


def test_what_has_no_grid_is_as_it_was():
    pooled = torch.rand(2, 9)
    assert confined_embeddings(pooled, [interior(1), interior(2)]) is pooled


class Pixels(Backbone):
    """Whose features are the pixels, and their means of 2 x 2."""

    def feature_maps(self, pixels):
        maps = pixels.permute(0, 3, 1, 2).float()
        return [maps, torch.nn.functional.avg_pool2d(maps, 2)]


def test_no_embedding_is_made_of_a_patch_outside():
    """Pooled over the image, and over neighbours, too."""

    def embed(maps):
        near = torch.nn.functional.avg_pool2d(maps[0], 3, 1, 1).permute(0, 2, 3, 1)
        return {"near": near, "pooled": maps[1].mean(dim=(2, 3))}

    torch_net = torch.nn.Identity()
    backbone = Pixels(torch_net, (0.0,) * 3, (1.0,) * 3, "", torch.device("cpu"))
    extract = Extractor(backbone, embed)
    inside = interior(3).pixels()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 18, 3), np.uint8)
    other = np.where(inside[..., None], pixels, 255 - pixels)
    one, two = (extract(some, [interior(3)] * 2) for some in (pixels, other))
    assert all(np.array_equal(one[name], two[name]) for name in ("near", "pooled"))
    loose, changed = extract(pixels), extract(other)
    assert not any(np.array_equal(loose[name], changed[name]) for name in ("near", "pooled"))
