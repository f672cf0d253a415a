"""Feature maps of tiles, stitched, are those of the whole image but for what a network pads."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.config import BackboneSettings, TileSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.extractor import Extractor, stride_of
from patchlake.pipeline.features.tiled import Cut, stitched_maps

STRIDE = 8


@dataclass
class Pooling:
    """A network whose cells look at nothing but their own pixels: means of squares of pixels."""

    calls: int = 0
    largest: int = 0

    def feature_maps(self, pixels):
        self.calls += 1
        self.largest = max(self.largest, pixels[..., 0].numel())
        scaled = pixels.permute(0, 3, 1, 2).float()
        return [torch.nn.functional.avg_pool2d(scaled, side) for side in (STRIDE // 2, STRIDE)]


@st.composite
def cuts(draw):
    size = draw(st.integers(2, 8))
    image = tuple(STRIDE * draw(st.integers(1, 30)) for _ in range(2))
    chosen = TileSettings(size=STRIDE * 2 * size, overlap=STRIDE * draw(st.integers(0, size)))
    return Cut.of(image, chosen, STRIDE)


def noise(*size: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


@given(cuts(), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_of_a_network_without_borders_there_is_no_seam(cut, at_once):
    network = Pooling()
    expected = network.feature_maps(noise(*cut.image))
    found = stitched_maps(network.feature_maps, noise(*cut.image), cut, at_once)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-4)


@given(cuts())
@settings(max_examples=50, deadline=None)
def test_what_is_the_same_everywhere_stays_so(cut):
    image = torch.full((1, *cut.image, 3), 77, dtype=torch.uint8)
    for one in stitched_maps(Pooling().feature_maps, image, cut, 2):
        torch.testing.assert_close(one, torch.full_like(one, 77), rtol=1e-6, atol=0)


def test_only_tiles_go_through_the_network():
    network = Pooling()
    cut = Cut.of((256, 512), TileSettings(size=64, overlap=16), STRIDE)
    stitched_maps(network.feature_maps, noise(256, 512), cut, 2)
    # Of 5 x 11 tiles, two at a time.
    assert (network.calls, network.largest) == (28, 2 * 64 * 64)


@pytest.fixture(scope="module")
def network():
    chosen = BackboneSettings(
        name="resnet10t.c3_in1k", weights="untrained", layers=[2, 3], precision="float32"
    )
    return load_backbone(chosen, seed=0)


def texture(height: int, width: int) -> np.ndarray:
    """One image of a pattern that repeats at every cell of the coarsest layer."""
    unit = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return np.tile(unit, (height // 16, width // 16, 1))[np.newaxis]


def test_a_network_has_hardly_a_seam_where_tiles_overlap(network):
    """A constant texture: cells of the whole image far from its border are all the same."""
    image = texture(384, 384)
    whole = Extractor(network, _named)(image)["fine"][0]
    # 12 cells are 96 pixels, beyond what the layers see.
    inner = whole[:, 12:-12, 12:-12]
    unit = np.abs(inner).mean()
    seams = {}
    for overlap in (0, 64):
        cut = Extractor(network, _named, TileSettings(size=128, overlap=overlap))
        found = cut(image)["fine"][0][:, 12:-12, 12:-12]
        seams[overlap] = np.abs(found - inner).max() / unit
    assert seams[64] < 0.3 * seams[0]


def _named(maps):
    return {"fine": maps[0], "coarse": maps[1]}


def test_an_image_s_features_are_the_same_beside_others(network):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3, 96, 160, 3), dtype=np.uint8)
    extractor = Extractor(network, _named, TileSettings(size=64, overlap=32))
    together = extractor(images)
    for number in range(3):
        alone = extractor(images[number : number + 1])
        for name, array in alone.items():
            assert array[0].tobytes() == together[name][number].tobytes()
    assert together["fine"].shape[-2:] == (12, 20)


def test_an_image_of_a_tile_is_not_cut(network):
    image = texture(64, 64)
    cut = Extractor(network, _named, TileSettings(size=64, overlap=16))(image)
    plain = Extractor(network, _named)(image)
    assert {n: a.tobytes() for n, a in cut.items()} == {n: a.tobytes() for n, a in plain.items()}


@pytest.mark.parametrize(
    ("tile", "size", "said"),
    [
        ((72, 32), (160, 160), "image.tile.size is 72 pixels.*is 16.*64 or 80 would do"),
        ((64, 20), (160, 160), "image.tile.overlap is 20 pixels.*16 or 32 would do"),
        ((64, 16), (160, 168), "a side of the inputs .* is 168 pixels"),
    ],
)
def test_cells_of_tiles_have_to_lie_on_one_another(network, tile, size, said):
    assert stride_of(network) == 16
    extractor = Extractor(network, _named, TileSettings(size=tile[0], overlap=tile[1]))
    with pytest.raises(ConfigError, match=said):
        extractor(np.zeros((1, *size, 3), np.uint8))
