"""The frozen backbone: a timm network that gives feature maps at chosen layers.

Its weights come from an installed package (`packaged`), from the timm hub, from a safetensors file,
or are random ("untrained"). Their digest is kept with every model, so that images are scored with
the weights that it was fitted with.

timm is imported in the functions that use it: that takes a second and more, and `status` needs
none of it.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from urllib.request import urlopen

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchlake.pipeline.config import BackboneSettings, StorageSettings, nearest
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.features.importing import import_timm
from patchlake.pipeline.features.layers import create_network, state_in_use
from patchlake.pipeline.features.packaged import PACKAGED, read_packaged
from patchlake.pipeline.features.precision import Precision, multiplies_bfloat16, to_bfloat16
from patchlake.pipeline.storage import cache
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.storage.owned import one_line

UNTRAINED = "untrained"
# Of a network that timm knows no more of.
_HALF, _USUAL_SIZE = (0.5, 0.5, 0.5), (224, 224)


@dataclass(frozen=True)
class Backbone:
    """A network in inference mode.

    `mean` and `std` are of the three colours, as fractions of 255, and pixels are standardised by
    them. `weights_sha256` is a digest of all parameters and buffers that feature maps depend on, as
    they are in float32, and `precision` what the network computes in.
    """

    network: torch.nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str
    device: torch.device
    precision: Precision = "float32"

    def feature_maps(self, pixels: UInt8[Tensor, "images h w 3"]) -> list[Tensor]:
        """Return feature maps (images, channels, rows, columns) in float32, on the device.

        The layer with the finest grid comes first, whatever the order in which layers were named.

        Raises:
            ConfigError: if the network does not take images of this size.
        """
        mean, std = _colours(self.mean, self.device), _colours(self.std, self.device)
        scaled = (pixels.to(self.device, non_blocking=True).float() - mean) / std
        try:
            maps: list[Tensor] = self.network(scaled.permute(0, 3, 1, 2))
        except AssertionError as error:
            # timm asserts that the sides of an image are multiples of a transformer's patches.
            height, width = pixels.shape[1:3]
            raise ConfigError(
                f"image.resize and image.crop give {height} x {width} pixels, which backbone.name "
                f"does not take: {error}"
            ) from None
        if getattr(self.network, "output_fmt", None) == "NHWC":
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        maps = [feature_map.float() for feature_map in maps]
        return sorted(maps, key=lambda feature_map: feature_map[0, 0].numel(), reverse=True)


@lru_cache(maxsize=16)
def _colours(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return fractions of 255 as levels, on the device: to copy them there takes it to a stop."""
    return torch.tensor(values, device=device) * 255


@lru_cache(maxsize=1)
def _timm_names() -> frozenset[str]:
    """Return the 3,000 names that timm knows, which it sorts anew each time that it is asked."""
    timm = import_timm()
    return frozenset(timm.list_models(pretrained=True) + timm.list_models())


def load_backbone(
    settings: BackboneSettings, *, seed: int = 0, storage: StorageSettings | None = None
) -> Backbone:
    """Return the backbone with its weights, on the GPU if there is one.

    Args:
        settings: Name, weights, layers and precision. Without `weights`, they come from a package
            where the name is one of `PACKAGED`, else from the timm hub. `auto` is bfloat16 where
            the device multiplies it and the network can compute in it.
        seed: For the random weights of an untrained network.
        storage: How S3 is reached, for a weights file that is there.

    Raises:
        ConfigError: on an unknown name or layer, absent weights, weights of another network, or
            where bfloat16 is asked for and the network cannot compute in it.
    """
    backbone, size = _in_float32(settings, seed, storage or StorageSettings())
    native = multiplies_bfloat16(backbone.device)
    if settings.precision == "float32" or (settings.precision == "auto" and not native):
        return backbone
    try:
        to_bfloat16(backbone.network, size, backbone.device, native=native)
    except (RuntimeError, AssertionError, TypeError, LookupError, AttributeError) as error:
        # What torch and timm raise where a network is not what is expected of one.
        if settings.precision == "auto":
            # The network is half changed: it is loaded again.
            return _in_float32(settings, seed, storage or StorageSettings())[0]
        raise ConfigError(
            f"'{settings.name}' does not compute in bfloat16 ({one_line(error)}); "
            "set backbone.precision=float32"
        ) from None
    return replace(backbone, precision="bfloat16")


def _in_float32(
    settings: BackboneSettings, seed: int, storage: StorageSettings
) -> tuple[Backbone, tuple[int, int]]:
    """Return the backbone in float32, and rows and columns of an image that it takes."""
    timm = import_timm()
    packaged = settings.name if settings.name in PACKAGED else None
    if packaged:
        settings = settings.model_copy(update={"name": PACKAGED[packaged].timm_name})
    if settings.name not in _timm_names():
        family = timm.list_models(f"{settings.name[:4].lower()}*", pretrained=True)
        near = nearest(settings.name, family) if family else ""
        raise ConfigError(
            f"backbone.name '{settings.name}' is none of {', '.join(PACKAGED)}, and not a timm "
            f"model{near}"
        )
    network = _with_weights(settings, packaged, seed, storage)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # By default torch convolves in TF32 on a GPU, which has 10 bits. Features would differ by 1e-3
    # from those of a CPU, and one model may be fitted on a GPU and used on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
    described = timm.get_pretrained_cfg(settings.name)
    if described is None:
        return Backbone(network, _HALF, _HALF, _digest(network), device), _USUAL_SIZE
    backbone = Backbone(network, described.mean, described.std, _digest(network), device)
    return backbone, described.input_size[1:]


def _with_weights(
    settings: BackboneSettings, packaged: str | None, seed: int, storage: StorageSettings
) -> torch.nn.Module:
    if settings.weights == UNTRAINED:
        return create_network(settings, seed, pretrained=False)
    if settings.weights is None:
        return _from_package(settings, packaged, seed) if packaged else _from_hub(settings, seed)
    return _from_file(settings, split_uri(settings.weights, storage), seed)


def _from_package(settings: BackboneSettings, packaged: str, seed: int) -> torch.nn.Module:
    network = create_network(settings, seed, pretrained=False)
    weights = read_packaged(packaged)
    # All that it asks for, and nothing of the classifier behind it.
    names = network.state_dict()
    network.load_state_dict({name: weights[name.removeprefix("network.")] for name in names})
    return network


def _from_hub(settings: BackboneSettings, seed: int) -> torch.nn.Module:
    if not hub_has(settings.name):
        # Asked first: the hub's own client tries for a minute.
        raise ConfigError(
            f"the weights of '{settings.name}' are not on this machine, and the timm hub does not "
            "answer; name a safetensors file with --weights"
        )
    try:
        return create_network(settings, seed, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the weights of '{settings.name}' could not be loaded from the timm hub "
            f"({type(error).__name__}); name a safetensors file with --weights"
        ) from error


def _from_file(
    settings: BackboneSettings, located: tuple[Folder, str], seed: int
) -> torch.nn.Module:
    """Return the network with the weights of a safetensors file, none of which may be missing.

    Args:
        settings: Name, weights and layers.
        located: The folder of the file, and its name in there.
        seed: For a second network, to which the weights are compared.

    Raises:
        ConfigError: if the file is absent or damaged, or not one of weights for this network.
    """
    uri = str(settings.weights)
    if not uri.endswith(".safetensors"):
        raise ConfigError(
            f"backbone.weights '{uri}': only .safetensors is read; nothing is unpickled"
        )
    with _as_local_file(*located) as path:
        try:
            with safe_open(path, "pt") as file:
                in_file = set(map(_normalised, file.keys()))
            network = create_network(
                settings, seed, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
            )
        except SafetensorError as error:
            raise ConfigError(f"'{uri}' is not a safetensors file: {error}") from None
        except (RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(f"'{uri}' is not weights of '{settings.name}': {first}") from None
    # timm does not complain of tensors that the file lacks: they keep their first values. So the
    # values after loading are compared with those of a network that nothing was loaded into.
    fresh = create_network(settings, seed, pretrained=False).state_dict()
    learned = {name for name, _ in network.named_parameters()}
    used = {
        name: tensor
        for name, tensor in state_in_use(network).items()
        if name in learned or "running_" in name
    }
    # The first values of a matrix are random and depend on the seed: if they are still there, the
    # matrix was not loaded. Those of a vector are zeros or ones, which a trained vector may have,
    # too, so that its name must also be absent from the file. timm renames some tensors as it loads
    # them, so that names alone would not do: but then the values of matrices tell.
    absent = [
        name
        for name, tensor in used.items()
        if torch.equal(tensor, fresh[name])
        and (tensor.ndim > 1 or _normalised(name) not in in_file)
    ]
    if absent:
        raise ConfigError(
            f"'{uri}' is not weights of '{settings.name}': it lacks {len(absent)} of its "
            f"{len(used)} tensors, for example '{absent[0]}'"
        )
    return network


def _normalised(name: str) -> str:
    """Return a tensor's name in a form that files, whole networks and networks of layers share."""
    return name.removeprefix("network.").replace("_", ".")


@contextmanager
def _as_local_file(folder: Folder, name: str) -> Iterator[Path]:
    """Yield the path of the file if it is local, else of a copy that exists until the block ends.

    Raises:
        ConfigError: if the file does not exist or cannot be read.
    """
    absent = ConfigError(f"backbone.weights '{folder.path(name)}' does not exist")
    if folder.is_local:
        if not folder.exists(name):
            raise absent
        yield Path(folder.path(name))
        return
    with tempfile.TemporaryDirectory() as copy:
        path = Path(copy) / name
        try:
            # The version is part of the key of the cache: the URI may name another file one day.
            named = f"{folder.path(name)} {folder.entry(name).version}"
            version = hashlib.sha256(named.encode()).hexdigest()
            path.write_bytes(cache.read(version, partial(folder.read, name)))
        except FileNotFoundError:
            raise absent from None
        except StorageRefused as error:
            raise ConfigError(f"backbone.weights: {error}") from None
        yield path


def _digest(network: torch.nn.Module) -> str:
    """Return a SHA-256 of the names, types, shapes and values of all tensors in use."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_in_use(network).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hub_has(name: str, *, timeout_s: float = 5.0) -> bool:
    """Return whether the weights are in the local cache, or the timm hub answers in time."""
    import huggingface_hub
    from huggingface_hub import constants

    timm = import_timm()
    described = timm.get_pretrained_cfg(name)
    if described is None or not described.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    cached = (huggingface_hub.try_to_load_from_cache(described.hf_hub_id, one) for one in files)
    if any(isinstance(path, str) for path in cached):
        return True
    try:
        with urlopen(constants.ENDPOINT, timeout=timeout_s):  # noqa: S310 - the hub's own https
            return True
    except OSError:
        return False
