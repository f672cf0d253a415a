"""The backbone: the same bytes however it is run, and only the weights that were named."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from patchlake.pipeline.config import BackboneSettings, Settings, load_settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import UNTRAINED, load_backbone
from patchlake.pipeline.features.extractor import Extractor, joined
from patchlake.pipeline.features.patches import concat_embedding
from tests.conftest import ASSETS

SMALL = BackboneSettings(name="resnet10t.c3_in1k", weights=UNTRAINED, layers=(2, 3))
RESNET18 = BackboneSettings(name="resnet18.tv_in1k", layers=(2, 3), precision="float32")
# Mahalanobis AD's levels of an EfficientNet: stem, the seven stages, head.
NINE = ("bn1", *(f"blocks.{stage}" for stage in range(7)), "bn2")


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


def embed(feature_maps):
    return {"patches": concat_embedding(feature_maps), "first": feature_maps[0].mean(dim=(2, 3))}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_neither_pieces_nor_threads_change_a_bit(precision, pictures):
    small = load_backbone(SMALL.model_copy(update={"precision": precision}))
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        expected = pool.submit(Extractor(small, embed), pictures).result()
        assert expected["patches"].shape == (7, 6, 8, 128 + 256)
        assert expected["first"].shape == (7, 128)
        extract = Extractor(small, embed)
        for cut in (7, 4, 1):
            parts = pool.map(extract, [pictures[i : i + cut] for i in range(0, 7, cut)])
            embedded = joined(list(parts))
            assert list(embedded) == list(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(embedded[name], array)


@given(order=st.lists(st.integers(0, 6), min_size=1, max_size=9))
@settings(max_examples=20)
def test_an_image_has_the_same_embedding_among_any_others(small, pictures, order):
    extract = Extractor(small, embed)
    alone, all_ = extract(pictures[order]), extract(pictures)
    np.testing.assert_array_equal(alone["patches"], all_["patches"][order])


def test_no_images_have_no_embeddings(small):
    assert Extractor(small, embed)(np.empty((0, 48, 64, 3), np.uint8)) == {}


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
    settings = RESNET18.model_copy(
        update={"name": "resnet34.tv_in1k", "weights": str(resnet18_file)}
    )
    with pytest.raises(ConfigError, match="lacks 70 of its 145 tensors") as error:
        load_backbone(settings)
    assert str(resnet18_file) in str(error.value)
    assert "resnet34.tv_in1k" in str(error.value)


@pytest.mark.parametrize(
    "tensor", ["layer2.1.conv2.weight", "layer2.1.bn2.bias", "layer2.1.bn2.running_var"]
)
def test_weights_that_lack_one_tensor_are_refused(resnet18, tmp_path, tensor):
    state = resnet18.state_dict()
    del state[tensor]
    save_file(state, tmp_path / "holed.safetensors")
    with pytest.raises(ConfigError, match=f"lacks 1 of its .* for example '{tensor}'"):
        load_backbone(RESNET18.model_copy(update={"weights": str(tmp_path / "holed.safetensors")}))


def test_weights_that_are_not_finite_are_told(resnet18, tmp_path, pictures):
    state = resnet18.state_dict()
    state["layer2.1.conv2.weight"] = state["layer2.1.conv2.weight"] * torch.nan
    path = tmp_path / "damaged.safetensors"
    save_file(state, path)
    extract = Extractor(load_backbone(RESNET18.model_copy(update={"weights": str(path)})), embed)
    with pytest.raises(ConfigError, match="not finite: its weights are damaged"):
        extract(pictures)


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
        ({"weights": "absent.safetensors"}, r"absent\.safetensors' does not exist"),
        ({"weights": "model.pth"}, r"only \.safetensors is read"),
        ({"name": "resnet18.tv_in1", "weights": UNTRAINED}, r"did you mean 'resnet18\.tv_in1k'"),
        ({"name": "ResNet18.tv_in1k", "weights": UNTRAINED}, r"did you mean 'resnet18\.tv_in1k'"),
        (
            {"name": "zzz", "weights": UNTRAINED},
            r"'zzz' is none of lite0, lite1, lite2, and not a timm model$",
        ),
        ({"layers": (2, 9), "weights": UNTRAINED}, r"backbone\.layers \(2, 9\) do not fit 'resn"),
    ],
)
def test_what_does_not_exist_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        load_backbone(RESNET18.model_copy(update=changed))


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    save_file(untrained("mobilenetv2_050.lamb_in1k").state_dict(), path)
    return path


def maps_of(name, layers, weights, pictures):
    # Which BatchNorms are folded, and so the last bits, hangs on the layers that are read.
    settings = BackboneSettings(name=name, layers=layers, weights=str(weights), precision="float32")
    backbone = load_backbone(settings)
    with torch.inference_mode():
        return backbone.feature_maps(torch.from_numpy(pictures))


def test_named_layers_give_what_numbered_ones_give(resnet18_file, mobilenet_file, pictures):
    for file, name, numbers, names in (
        (resnet18_file, "resnet18.tv_in1k", (2, 3), ("layer2", "layer3")),
        (mobilenet_file, "mobilenetv2_050", (1, 2, 4), ("blocks.1", "blocks.2", "blocks.6")),
    ):
        numbered = maps_of(name, numbers, file, pictures)
        named = maps_of(name, names, file, pictures)
        for one, other in zip(numbered, named, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_named_layer_is_as_its_module_gives_it_though_the_next_works_in_place(
    resnet18_file, pictures
):
    (raw,) = maps_of(RESNET18.name, ("bn1",), resnet18_file, pictures)
    (rectified,) = maps_of(RESNET18.name, ("act1",), resnet18_file, pictures)
    before, both = maps_of(RESNET18.name, ("bn1", "act1"), resnet18_file, pictures)
    assert raw.min() < 0
    torch.testing.assert_close(raw.relu(), rectified, rtol=0, atol=0)
    torch.testing.assert_close(before, raw, rtol=0, atol=0)
    torch.testing.assert_close(both, rectified, rtol=0, atol=0)


def test_nine_levels_of_an_efficientnet_come_the_finest_first_in_any_order_of_names():
    pixels = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), np.uint8)
    maps = maps_of("efficientnet_b0", NINE, UNTRAINED, pixels)
    channels = [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    sides = [32, 32, 16, 8, 4, 4, 2, 2, 2]
    assert [tuple(m.shape) for m in maps] == [
        (1, c, s, s) for c, s in zip(channels, sides, strict=True)
    ]
    for one, other in zip(
        maps, maps_of("efficientnet_b0", NINE[::-1], UNTRAINED, pixels), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.assets
def test_nine_levels_of_real_weights_hold_the_stages_that_timm_numbers():
    pixels = np.random.default_rng(2).integers(0, 256, (1, 224, 224, 3), np.uint8)
    file = ASSETS / "weights/mobilenetv2_100.safetensors"
    maps = maps_of("mobilenetv2_100.ra_in1k", NINE, file, pixels)
    assert [m.shape[1] for m in maps] == [32, 16, 24, 32, 64, 96, 160, 320, 1280]
    numbered = maps_of("mobilenetv2_100.ra_in1k", (1, 2, 3, 4), file, pixels)
    for expected, level in zip(numbered, (2, 3, 5, 7), strict=True):
        torch.testing.assert_close(maps[level], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "layers", "side"),
    [
        ("resnet18.tv_in1k", ("bn1", "layer1", "layer2.0.bn2"), 48),
        ("vit_small_patch16_dinov3", (2, 11), 64),
    ],
)
def test_threads_that_share_a_network_do_not_mix_their_images(name, layers, side):
    backbone = load_backbone(BackboneSettings(name=name, layers=layers, weights=UNTRAINED))
    pixels = np.random.default_rng(4).integers(0, 256, (24, 1, side, side, 3), np.uint8)

    def embed(image):
        with torch.inference_mode():
            return backbone.feature_maps(torch.from_numpy(image))

    def run(threads):
        with ThreadPoolExecutor(threads, None, torch.set_num_threads, (1,)) as pool:
            return list(pool.map(embed, pixels))

    for alone, among in zip(run(1), run(8), strict=True):
        for one, other in zip(alone, among, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_follows_the_last_named_layer_need_not_be_in_the_file(
    resnet18, resnet18_file, tmp_path
):
    cut = tmp_path / "cut.safetensors"
    state = resnet18.state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}, cut)
    named = RESNET18.model_copy(update={"layers": ("layer1", "layer3")})

    digests = {
        load_backbone(named.model_copy(update={"weights": str(file)}), seed=seed).weights_sha256
        for file, seed in ((resnet18_file, 0), (cut, 0), (cut, 1))
    }

    assert len(digests) == 1
    deeper = RESNET18.model_copy(update={"layers": ("layer1", "layer4.0"), "weights": str(cut)})
    with pytest.raises(
        ConfigError, match=r"lacks 15 of its 90 .* 'network\.layer4\.0\.conv1\.weig"
    ):
        load_backbone(deeper)


def test_what_follows_the_last_named_layer_is_not_run(pictures):
    settings = RESNET18.model_copy(update={"layers": ("layer2", "layer1"), "weights": UNTRAINED})
    backbone = load_backbone(settings)
    ran = []
    for name, module in backbone.network.network.named_children():
        module.register_forward_hook(lambda _m, _i, _o, name=name: ran.append(name))
    backbone.feature_maps(torch.from_numpy(pictures))
    assert ran == ["conv1", "bn1", "act1", "maxpool", "layer1"]


def test_the_digest_covers_what_is_used_wherever_it_is_registered(resnet18, tmp_path):
    # The downsampling of a block is registered behind its act2, and runs before it.
    name = "layer2.0.downsample.1.running_mean"
    digests = set()
    for shift in (0, 1):
        path = tmp_path / f"{shift}.safetensors"
        save_file({**resnet18.state_dict(), name: resnet18.state_dict()[name] + shift}, path)
        settings = RESNET18.model_copy(update={"layers": ("layer2.0.act2",), "weights": str(path)})
        digests.add(load_backbone(settings).weights_sha256)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("resnet18", ("layr2",), r"no module is 'layr2'; did you mean 'layer2'\?"),
        ("resnet18", ("stage",), r"no module is 'stage'; known: act1, bn1, conv1, "),
        ("efficientnet_b0", ("blocks.9",), r"no module is 'blocks\.9'; did you mean 'blocks\.\d"),
        ("resnet18", ("",), r"no module is ''"),
        ("resnet18", ("global_pool",), r"'global_pool' gives \[1, 512\], not \(images, chan"),
        ("vit_tiny_patch16_224", ("blocks.3",), r"gives \[1, 197, 192\].* numbers of its blo"),
        ("vit_tiny_patch16_224", ("norm.x",), r"no module is 'norm\.x'; did you mean 'norm'"),
        ("vit_tiny_patch16_224", ("blocks.0.attn.attn_drop",), r"attn\.attn_drop'\] are not run"),
        ("vit_tiny_patch16_224", (3, 12), r"\(3, 12\) do not fit 'vit_tiny.*12 is out of range"),
    ],
)
def test_a_layer_that_cannot_be_read_is_named(name, layers, message):
    settings = BackboneSettings(name=name, layers=layers, weights=UNTRAINED)
    with pytest.raises(ConfigError, match=message):
        load_backbone(settings)


def test_layers_are_numbers_or_names_and_survive_json():
    for text, layers in (("[2, 3]", (2, 3)), ("[bn1, blocks.0]", ("bn1", "blocks.0"))):
        settings = load_settings("", [f"backbone.layers={text}"])
        assert settings.backbone.layers == layers
        assert Settings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ConfigError, match=r"^setting 'backbone\.layers' is \[2, 'bn1'\]: "):
        load_settings("", ["backbone.layers=[2, bn1]"])


@pytest.mark.parametrize(
    ("name", "patch", "prefix"),
    [
        ("vit_tiny_patch16_224", 16, 1),
        ("deit_tiny_distilled_patch16_224", 16, 2),
        pytest.param("vit_small_patch14_dinov2.lvd142m", 14, 1, marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", 14, 5, marks=pytest.mark.slow),
        ("vit_small_patch16_dinov3.lvd1689m", 16, 5),
    ],
)
def test_a_transformers_layer_is_its_normed_patch_tokens_alone(name, patch, prefix):
    backbone = load_backbone(BackboneSettings(name=name, layers=(5, 11), weights=UNTRAINED))
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (2, 2 * patch, 3 * patch, 3), generator=generator)
    pixels = pixels.to(torch.uint8)
    transformer = backbone.network.network
    behind_block5 = []
    transformer.blocks[5].register_forward_hook(lambda _m, _i, out: behind_block5.append(out))

    with torch.inference_mode():
        middle, last = backbone.feature_maps(pixels)
        scaled = (pixels / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
        tokens = transformer.forward_features(scaled.permute(0, 3, 1, 2))
        normed = transformer.norm(behind_block5[0])

    for found, expected in ((last, tokens), (middle, normed)):
        assert expected.shape[1] == prefix + 6
        grid = expected[:, prefix:].reshape(2, 2, 3, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, grid, rtol=1e-4, atol=1e-4)
        assert found.dtype == torch.float32
    # Normed, each token has mean 0 and variance 1 as long as the norm's weights are untrained.
    torch.testing.assert_close(last.var(dim=1, correction=0), torch.ones(2, 2, 3), rtol=0, atol=0.1)


def test_only_the_blocks_that_a_transformer_needs_are_kept_and_counted(tmp_path):
    path = tmp_path / "vit.safetensors"
    state = untrained("vit_tiny_patch16_224").state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith(("blocks.4", "head"))}, path)
    settings = BackboneSettings(name="vit_tiny_patch16_224", layers=(3,), weights=str(path))
    assert len(load_backbone(settings).network.network.blocks) == 4
    with pytest.raises(
        ConfigError, match=r"lacks 12 of its 78 .* 'network\.blocks\.4\.norm1\.weight'"
    ):
        load_backbone(settings.model_copy(update={"layers": (5,)}))


@pytest.mark.parametrize(
    ("height", "width", "told"),
    [
        (100, 96, r"100 x 96 .*Input height \(100\) .* patch size \(16\)"),
        (96, 100, r"96 x 100 .*Input width \(100\) .* patch size \(16\)"),
    ],
)
def test_a_size_that_patches_do_not_divide_is_told_with_the_patch(height, width, told):
    settings = BackboneSettings(name="vit_tiny_patch16_224", layers=(0,), weights=UNTRAINED)
    backbone = load_backbone(settings)
    with pytest.raises(ConfigError, match=told):
        backbone.feature_maps(torch.zeros((1, height, width, 3), dtype=torch.uint8))


def test_a_network_with_channels_last_gives_them_second():
    name = "swin_tiny_patch4_window7_224"
    backbone = load_backbone(BackboneSettings(name=name, layers=(1, 2), weights=UNTRAINED))
    pixels = torch.zeros((1, 224, 224, 3), dtype=torch.uint8)
    maps = backbone.feature_maps(pixels)
    assert [tuple(m.shape) for m in maps] == [(1, 192, 28, 28), (1, 384, 14, 14)]
