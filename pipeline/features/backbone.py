"""The frozen backbone: feature maps of a timm network at chosen layers, with the weights named.

timm is imported where it is used: it takes three seconds, and `status` needs none of it.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchlake.pipeline.config import BackboneSettings, StorageSettings, nearest
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.features.layers import create_network, state_in_use
from patchlake.pipeline.storage import cache
from patchlake.pipeline.storage.folder import Folder, split_uri

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Backbone:
    """A network in inference mode; `weights_sha256` covers every parameter that is used."""

    network: torch.nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str
    device: torch.device

    def feature_maps(self, pixels: UInt8[Tensor, "images h w 3"]) -> list[Tensor]:
        """Return (images, channels, rows, columns) for each layer, the finest grid first.

        Raises:
            ConfigError: if the network does not take images of this size.
        """
        mean = torch.tensor(self.mean, device=self.device) * 255
        std = torch.tensor(self.std, device=self.device) * 255
        scaled = (pixels.to(self.device).float() - mean) / std
        try:
            maps: list[Tensor] = self.network(scaled.permute(0, 3, 1, 2))
        except AssertionError as error:
            # How timm says that a transformer's patches do not fit.
            height, width = pixels.shape[1:3]
            raise ConfigError(
                f"image.resize and image.crop give {height} x {width} pixels, which backbone.name "
                f"does not take: {error}"
            ) from None
        if getattr(self.network, "output_fmt", None) == "NHWC":
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        return sorted(maps, key=lambda feature_map: feature_map[0, 0].numel(), reverse=True)


def load_backbone(
    settings: BackboneSettings, *, seed: int = 0, storage: StorageSettings | None = None
) -> Backbone:
    """Return the backbone with weights from the timm hub, a safetensors file, or untrained.

    Args:
        settings: Name, weights and layers.
        seed: Of the random weights when they are untrained.
        storage: How S3 is reached, for weights that are there.

    Raises:
        ConfigError: on an unknown name or layer, absent weights, or weights of another network.
    """
    import timm

    if settings.name not in timm.list_models(pretrained=True) + timm.list_models():
        family = timm.list_models(f"{settings.name[:4].lower()}*", pretrained=True)
        near = nearest(settings.name, family) if family else ""
        raise ConfigError(f"backbone.name '{settings.name}' is not a timm model{near}")
    if settings.weights == UNTRAINED:
        network = create_network(settings, seed, pretrained=False)
    elif settings.weights is None:
        network = _from_hub(settings, seed)
    else:
        located = split_uri(settings.weights, storage or StorageSettings())
        network = _from_file(settings, located, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # TF32, torch's default for convolutions, has 10 bits: features of a GPU would be off by 1e-3
    # from those of a CPU, by which an image may be fitted or scored just as well.
    torch.backends.cudnn.allow_tf32 = False
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
    described = timm.get_pretrained_cfg(settings.name)
    mean, std = (described.mean, described.std) if described else ((0.5,) * 3, (0.5,) * 3)
    return Backbone(network, mean, std, _digest(network), device)


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
            f"the weights of '{settings.name}' could not be had from the timm hub "
            f"({type(error).__name__}); name a safetensors file with --weights"
        ) from error


def _from_file(
    settings: BackboneSettings, located: tuple[Folder, str], seed: int
) -> torch.nn.Module:
    uri = str(settings.weights)
    if not uri.endswith(".safetensors"):
        raise ConfigError(
            f"backbone.weights '{uri}': only .safetensors is read; nothing is unpickled"
        )
    with _as_local_file(*located) as path:
        try:
            with safe_open(path, "pt") as file:
                held = set(map(_plain, file.keys()))
            network = create_network(
                settings, seed, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
            )
        except SafetensorError as error:
            raise ConfigError(f"'{uri}' is not a safetensors file: {error}") from None
        except (RuntimeError, KeyError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(f"'{uri}' is not weights of '{settings.name}': {first}") from None
    # timm loads feature extractors leniently: what the file lacks stays as it was, without a word.
    fresh = create_network(settings, seed, pretrained=False).state_dict()
    learned = {name for name, _ in network.named_parameters()}
    used = {
        name: tensor
        for name, tensor in state_in_use(network).items()
        if name in learned or "running_" in name
    }
    # A new matrix is random, of this very seed. A new vector may be what the trained one is, too:
    # of those the name tells, which timm may change, but not of matrices and vectors alike.
    absent = [
        name
        for name, tensor in used.items()
        if torch.equal(tensor, fresh[name]) and (tensor.ndim > 1 or _plain(name) not in held)
    ]
    if absent:
        raise ConfigError(
            f"'{uri}' is not weights of '{settings.name}': it lacks {len(absent)} of its "
            f"{len(used)} tensors, for example '{absent[0]}'"
        )
    return network


def _plain(name: str) -> str:
    """Return a tensor's name as it is the same in a file, a network, and one cut to its layers."""
    return name.removeprefix("network.").replace("_", ".")


@contextmanager
def _as_local_file(folder: Folder, name: str) -> Iterator[Path]:
    """Yield the file itself if it is local, else a copy that goes when the block ends."""
    absent = ConfigError(f"backbone.weights '{folder.path(name)}' does not exist")
    if folder.is_local:
        if not folder.exists(name):
            raise absent
        yield Path(folder.path(name))
        return
    with tempfile.TemporaryDirectory() as copy:
        path = Path(copy) / name
        try:
            # Another file under the same URI has another version.
            named = f"{folder.path(name)} {folder.entry(name).version}"
            version = hashlib.sha256(named.encode()).hexdigest()
            path.write_bytes(cache.read(version, partial(folder.read, name)))
        except FileNotFoundError:
            raise absent from None
        except StorageRefused as error:
            raise ConfigError(f"backbone.weights: {error}") from None
        yield path


def _digest(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state_in_use(network).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hub_has(name: str, *, timeout_s: float = 5.0) -> bool:
    """Return, within seconds, whether the weights are in the local cache or the hub answers."""
    import huggingface_hub
    import timm
    from huggingface_hub import constants

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
