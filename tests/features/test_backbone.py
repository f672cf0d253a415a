"""The backbone: the same bytes however it is run, and only the weights that were named."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.config import BackboneSettings
from pipeline.errors import ConfigError
from pipeline.features.backbone import UNTRAINED, Extractor, load_backbone
from pipeline.features.patches import concat_embedding

SMALL = BackboneSettings(name="resnet10t.c3_in1k", weights=UNTRAINED)
RESNET18 = BackboneSettings(name="resnet18.tv_in1k")


@pytest.fixture(scope="module")
def small():
    return load_backbone(SMALL)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), np.uint8)


def untrained(name):
    """A model whose every weight and statistic is unlike what a new one has."""
    generator = torch.Generator().manual_seed(1)
    model = timm.create_model(name).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_(noise * (tensor.std(correction=0) + 0.1))
    return model


@pytest.fixture(scope="module")
def resnet18():
    return untrained("resnet18.tv_in1k")


@pytest.fixture(scope="module")
def resnet18_file(resnet18, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(resnet18.state_dict(), path)
    return path


def test_neither_batch_size_nor_threads_change_a_bit(small, pictures):
    expected = Extractor(small, concat_embedding, batch_size=1, threads=1)(pictures)
    assert expected.shape == (7, 6, 8, 128 + 256)
    for batch_size, threads in ((7, 1), (3, 2), (32, 4)):
        embedded = Extractor(small, concat_embedding, batch_size, threads)(pictures)
        np.testing.assert_array_equal(embedded, expected)


@given(order=st.lists(st.integers(0, 6), min_size=1, max_size=9))
@settings(max_examples=20)
def test_an_image_has_the_same_embedding_among_any_others(small, pictures, order):
    extract = Extractor(small, concat_embedding, threads=2)
    np.testing.assert_array_equal(extract(pictures[order]), extract(pictures)[order])


def test_no_images_have_no_embeddings(small):
    assert len(Extractor(small, concat_embedding)(np.empty((0, 48, 64, 3), np.uint8))) == 0


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_picture_has_finite_features(small, level):
    for maps in small.feature_maps(torch.full((1, 64, 64, 3), level, dtype=torch.uint8)):
        assert torch.isfinite(maps).all()
        assert maps.abs().max() > 0


def test_the_seed_decides_untrained_weights_and_leaves_the_callers_generator_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    again, other = load_backbone(SMALL, seed=0), load_backbone(SMALL, seed=1)

    assert again.weights_sha256 == small.weights_sha256 != other.weights_sha256
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_other_layers_are_other_weights(small):
    fewer = load_backbone(SMALL.model_copy(update={"layers": (2,)}))
    assert fewer.weights_sha256 != small.weights_sha256


def layers_by_hand(model, pixels):
    """layer2 and layer3 of a ResNet-18 as its paper lists them, ImageNet's mean and deviation."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = torch.from_numpy((pixels / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        stem = model.maxpool(model.act1(model.bn1(model.conv1(scaled))))
        layer2 = model.layer2(model.layer1(stem))
        return [layer2, model.layer3(layer2)]


def test_weights_from_a_file_give_the_features_of_the_model_they_are_from(
    resnet18, resnet18_file, pictures
):
    backbone = load_backbone(RESNET18.model_copy(update={"weights": str(resnet18_file)}))

    found = backbone.feature_maps(torch.from_numpy(pictures))

    for maps, expected in zip(found, layers_by_hand(resnet18, pictures), strict=True):
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


def test_the_digest_is_of_the_weights_and_not_of_the_seed_or_the_file(resnet18_file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(resnet18_file.read_bytes())
    one = load_backbone(RESNET18.model_copy(update={"weights": str(resnet18_file)}), seed=0)
    two = load_backbone(RESNET18.model_copy(update={"weights": f"file://{copy}"}), seed=1)
    assert one.weights_sha256 == two.weights_sha256


def test_weights_of_a_smaller_network_are_refused(resnet18_file):
    # Every tensor of ResNet-18 fits ResNet-34, which has more.
    settings = BackboneSettings(name="resnet34.tv_in1k", weights=str(resnet18_file))
    with pytest.raises(ConfigError, match="lacks 14 of its 87 parameters") as error:
        load_backbone(settings)
    assert str(resnet18_file) in str(error.value)
    assert "resnet34.tv_in1k" in str(error.value)


def test_weights_that_lack_one_tensor_are_refused(resnet18, tmp_path):
    state = resnet18.state_dict()
    del state["layer2.1.conv2.weight"]
    save_file(state, tmp_path / "holed.safetensors")
    with pytest.raises(ConfigError, match=r"for example 'layer2\.1\.conv2\.weight'"):
        load_backbone(RESNET18.model_copy(update={"weights": str(tmp_path / "holed.safetensors")}))


def test_weights_of_other_shapes_are_refused(tmp_path):
    path = tmp_path / "mobilenet.safetensors"
    save_file(untrained("mobilenetv2_050.lamb_in1k").state_dict(), path)
    with pytest.raises(ConfigError, match=r"not weights of 'resnet18\.tv_in1k': size") as error:
        load_backbone(RESNET18.model_copy(update={"weights": str(path)}))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 1000])
def test_a_file_that_is_no_safetensors_is_named(resnet18_file, tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(resnet18_file.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"cut\.safetensors' is not a safetensors file"):
        load_backbone(RESNET18.model_copy(update={"weights": str(path)}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "absent.safetensors"}, r"'absent\.safetensors' does not exist"),
        ({"weights": "model.pth"}, r"only \.safetensors is read"),
        ({"name": "resnet18.tv_in1", "weights": UNTRAINED}, r"did you mean 'resnet18\.tv_in1k'"),
        ({"name": "ResNet18.tv_in1k", "weights": UNTRAINED}, r"did you mean 'resnet18\.tv_in1k'"),
        ({"name": "zzz", "weights": UNTRAINED}, r"'zzz' is not a timm model$"),
        ({"layers": (2, 9), "weights": UNTRAINED}, r"backbone\.layers \(2, 9\) do not fit 'resn"),
    ],
)
def test_what_does_not_exist_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        load_backbone(RESNET18.model_copy(update=changed))
