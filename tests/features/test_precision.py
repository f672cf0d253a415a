"""A network in bfloat16: near float32, alike on all processors, and the same for each image."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchlake.pipeline.config import BackboneSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features import backbone as loading
from patchlake.pipeline.features.backbone import UNTRAINED, load_backbone
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.features.precision import multiplies_bfloat16, to_bfloat16
from tests.conftest import ASSETS

CPU = torch.device("cpu")
# A residual network that adds in place, one of depthwise convolutions whose BatchNorm has the
# activation in it, one whose BatchNorms come before convolutions, and two kinds of transformers.
NETWORKS = {
    "resnet10t.c3_in1k": (2, 3),
    "tf_efficientnet_lite0.in1k": (2, 3),
    "densenet121.ra_in1k": (2, 3),
    "vit_tiny_patch16_224.augreg_in21k": (3,),
    "convnext_atto.d2_in1k": (1, 2),
}
NAMES = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def pictures():
    # Smooth, as photos are: of noise, all that is left is rounding.
    coarse = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3))
    fine = torch.from_numpy(coarse).permute(0, 3, 1, 2).float()
    fine = nn.functional.interpolate(fine, (64, 64), mode="bilinear")
    return fine.permute(0, 2, 3, 1).round().to(torch.uint8)


def settings_of(name, precision):
    return BackboneSettings(
        name=name, weights=UNTRAINED, layers=NETWORKS[name], precision=precision
    )


def maps_of(backbone, pictures):
    with torch.inference_mode():
        return backbone.feature_maps(pictures)


def apart(found, expected):
    """The largest relative distance of two networks' feature maps."""
    return max(
        float((one - other).norm() / other.norm())
        for one, other in zip(found, expected, strict=True)
    )


@NAMES
@pytest.mark.parametrize("native", [True, False])
def test_features_are_near_those_of_float32(name, native, pictures, monkeypatch):
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _device: native)
    exact = load_backbone(settings_of(name, "float32"))
    rounded = load_backbone(settings_of(name, "bfloat16"))
    assert (exact.precision, rounded.precision) == ("float32", "bfloat16")
    assert exact.weights_sha256 == rounded.weights_sha256
    found, expected = maps_of(rounded, pictures), maps_of(exact, pictures)
    assert {one.dtype for one in found} == {torch.float32}
    # 8 bits are 0.4 %, and each layer adds its own.
    assert 1e-5 < apart(found, expected) < 0.03


@NAMES
def test_rounding_gives_what_products_of_bfloat16_give(name, pictures, monkeypatch):
    found = []
    for native in (True, False):
        monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _device, native=native: native)
        found.append(maps_of(load_backbone(settings_of(name, "bfloat16")), pictures))
    exact = maps_of(load_backbone(settings_of(name, "float32")), pictures)
    # Sums are made in another order, as they are on another processor.
    assert apart(*found) < max(0.002, 0.75 * apart(found[0], exact))


@NAMES
@given(place=st.integers(0, 3), others=st.lists(st.integers(0, 4), min_size=3, max_size=3))
@settings(max_examples=6, deadline=None)
def test_an_image_has_the_same_features_at_each_place_of_a_batch(name, pictures, place, others):
    backbone = _loaded(name)
    alone = maps_of(backbone, pictures[:1].expand(4, -1, -1, -1).contiguous())
    batch = pictures[others].numpy()
    batch = np.insert(batch, place, pictures[0].numpy(), axis=0)
    among = maps_of(backbone, torch.from_numpy(batch))
    for one, other in zip(alone, among, strict=True):
        torch.testing.assert_close(other[place], one[0], rtol=0, atol=0)


_LOADED: dict[str, loading.Backbone] = {}


def _loaded(name):
    if name not in _LOADED:
        _LOADED[name] = load_backbone(settings_of(name, "bfloat16"))
    return _LOADED[name]


def test_coarse_layers_are_rounded_and_fine_ones_are_not():
    """Where bfloat16 is not multiplied, rounded weights are kept in float32."""
    network = load_backbone(settings_of("resnet10t.c3_in1k", "bfloat16")).network
    native = multiplies_bfloat16(torch.device("cpu"))
    found = {"conv1": set(), "layer": set()}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            is_rounded = torch.equal(weight.bfloat16().float(), weight.float())
            found[name[:5]].add((weight.dtype, is_rounded))
    assert found["conv1"] == {(torch.float32, False)}
    assert found["layer"] == {(torch.bfloat16 if native else torch.float32, True)}


def test_batchnorm_is_folded_where_it_takes_a_convolutions_result_and_only_there():
    def norms(name):
        network = load_backbone(settings_of(name, "bfloat16")).network
        return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())

    assert norms("resnet10t.c3_in1k") == 0
    # Those at the beginning of each of its layers and transitions take several layers' results.
    plain = timm.create_model("densenet121.ra_in1k", features_only=True, out_indices=(2, 3))
    before = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert 0 < norms("densenet121.ra_in1k") < before


class TwoReaders(nn.Module):
    """A convolution whose result somebody else takes beside the BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.norm.running_mean += 3
        self.norm.running_var *= 5

    def forward(self, image):
        found = self.conv(image)
        return [self.norm(found) + found]


def test_nothing_is_folded_that_somebody_else_reads():
    torch.manual_seed(0)
    network, image = (
        TwoReaders().eval().requires_grad_(requires_grad=False),
        torch.rand(2, 3, 64, 64),
    )
    (expected,) = network(image)
    to_bfloat16(network, (64, 64), CPU, native=True)
    assert isinstance(network.norm, nn.BatchNorm2d)
    (found,) = network(image)
    assert apart([found.float()], [expected]) < 0.01


def test_auto_is_what_the_processor_multiplies(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _device, native=native: native)
        assert load_backbone(settings_of("resnet10t.c3_in1k", "auto")).precision == expected


def test_a_network_that_cannot_is_left_in_float32_or_refused(monkeypatch, pictures):
    def fails(network, *_: object, **__: object) -> None:
        network.to(torch.bfloat16)
        raise RuntimeError("expected Float, found BFloat16")

    name = "resnet10t.c3_in1k"
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _device: True)
    monkeypatch.setattr(loading, "to_bfloat16", fails)
    left = load_backbone(settings_of(name, "auto"))
    assert left.precision == "float32"
    exact = load_backbone(settings_of(name, "float32"))
    assert apart(maps_of(left, pictures), maps_of(exact, pictures)) == 0
    with pytest.raises(ConfigError, match=r"'resnet10t\.c3_in1k' does not compute in bfloat16"):
        load_backbone(settings_of(name, "bfloat16"))


@pytest.mark.assets
def test_of_trained_weights_and_photos_features_differ_by_a_few_percent():
    photos = sorted((ASSETS / "data/magnetic_tile/train/good").iterdir())[:8]
    pixels = torch.from_numpy(np.stack([_pixels(path) for path in photos]))
    for name, weights, bound in (
        ("resnet18.tv_in1k", str(ASSETS / "weights/resnet18.safetensors"), 0.016),
        ("lite0", None, 0.045),
    ):
        maps = [
            maps_of(
                load_backbone(
                    BackboneSettings(name=name, weights=weights, layers=(2, 3), precision=precision)
                ),
                pixels,
            )
            for precision in ("bfloat16", "float32")
        ]
        assert apart(*maps) < bound


def _pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB").resize((224, 224)))


@pytest.mark.parametrize(
    ("precision", "side", "expected"),
    [
        ("float32", 64, 1),
        ("bfloat16", 64, 4),
        ("bfloat16", 224, 4),
        ("bfloat16", 256, 3),
        ("bfloat16", 320, 1),
    ],
)
def test_larger_images_go_through_the_network_fewer_at_a_time(precision, side, expected):
    backbone = load_backbone(settings_of("resnet10t.c3_in1k", precision))
    assert Extractor(backbone, lambda _maps: {}).at_once((side, side)) == expected
