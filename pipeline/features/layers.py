"""timm's networks, cut to the layers that are read. Only `pipeline.features` uses timm.

The setting `layers` names them in one of three ways:

    [2, 3]           stages of a convolutional network, by number: timm's `out_indices`
    [11]             blocks of a vision transformer, by number: grids of its patch tokens
    [bn1, blocks.0]  any modules of a network, by name

timm is imported in the functions that use it: that takes a second and more, and `status` needs
none of it.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.func import functional_call

from patchlake.pipeline.config import BackboneSettings, Layers, nearest
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.importing import import_timm

# Modules of timm whose models are plain vision transformers, which `TokenGrids` takes.
_TRANSFORMERS = ("vision_transformer", "deit", "eva")


class NamedLayers(torch.nn.Module):
    """A network that returns the outputs of named modules, and stops after the last of them.

    Several threads may call it at the same time: outputs are kept for each thread by itself.
    """

    def __init__(self, network: torch.nn.Module, names: Layers) -> None:
        """Add a hook to each named module of `network`.

        Raises:
            ConfigError: on a name that no module has; the message suggests the nearest one.
        """
        super().__init__()
        self.network = network
        self.output_fmt = getattr(network, "output_fmt", "NCHW")
        self._names = frozenset(map(str, names))
        self._call = threading.local()
        modules = {name: module for name, module in network.named_modules() if name}
        for name in self._names:
            if name not in modules:
                # Only modules that are nested no deeper than the name: a network has hundreds
                # below.
                known = [other for other in modules if other.count(".") <= name.count(".")]
                raise ConfigError(f"backbone.layers: no module is '{name}'{nearest(name, known)}")
            modules[name].register_forward_hook(partial(self._keep, name))

    def forward(self, images: Float32[Tensor, "images 3 h w"]) -> list[Tensor]:
        """Return the modules' outputs, each of 4 axes, in the order in which they are computed.

        Raises:
            ConfigError: if a module is not run, or its output has not 4 axes.
        """
        found: dict[str, Tensor] = {}
        self._call.found = found
        with suppress(_AllFoundError):
            self.network(images)
        absent = self._names - found.keys()
        if absent:
            raise ConfigError(
                f"backbone.layers: modules {sorted(absent)} are not run when computing features; "
                "name others"
            )
        return list(found.values())

    def _keep(self, name: str, _module: object, _inputs: object, output: object) -> None:
        """Keep an output; torch calls this whenever the module of that name has been run."""
        if not isinstance(output, Tensor) or output.ndim != 4:  # noqa: PLR2004 - see the message
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"backbone.layers: '{name}' gives {got}, not (images, channels, rows, columns); "
                "layers of a vision transformer are named by the numbers of its blocks"
            )
        found: dict[str, Tensor] = self._call.found
        # A copy, because the next module may overwrite it: in a ResNet, act1 overwrites the output
        # of bn1.
        found.setdefault(name, output.clone())
        if len(found) == len(self._names):
            raise _AllFoundError


class _AllFoundError(Exception):
    """Ends a forward pass once every named module has been run."""


class TokenGrids(torch.nn.Module):
    """A vision transformer that returns the patch tokens after numbered blocks, as grids.

    Class and register tokens are left out, and blocks after the last number are dropped. The final
    norm, where the network has one for tokens, is applied to the tokens of each block, as
    `get_intermediate_layers` of DINOv2 does (Oquab et al., "DINOv2", TMLR 2024). For the last block
    that gives the `x_norm_patchtokens` of AnomalyDINO (Damm et al., "AnomalyDINO", WACV 2025).
    """

    def __init__(self, network: torch.nn.Module, blocks: Layers) -> None:
        super().__init__()
        self.network = network
        self._blocks = network.prune_intermediate_layers(list(blocks))  # type: ignore[operator]

    def forward(self, images: Float32[Tensor, "images 3 h w"]) -> list[Tensor]:
        """Return (images, channels, rows, columns) of each block, in the order of the blocks."""
        maps: list[Tensor] = self.network.forward_intermediates(  # type: ignore[operator]
            images, indices=self._blocks, norm=True, intermediates_only=True
        )
        return maps


def create_network(settings: BackboneSettings, seed: int, **options: Any) -> torch.nn.Module:  # noqa: ANN401 - timm's
    """Return the network in inference mode: a batch of images -> a list of feature maps.

    Args:
        settings: Name and layers. Where the user names no layers, the method's must be there.
        seed: For the random values of weights that are not loaded.
        options: Of `timm.create_model`; they say which weights are loaded.

    Raises:
        ValueError: without layers.
        ConfigError: on layers that the network does not have.
    """
    timm = import_timm()
    layers = settings.layers
    if layers is None:
        raise ValueError("backbone.layers is None; a method's own layers belong there")
    make = partial(timm.create_model, settings.name, **options)
    network: torch.nn.Module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if _are_names(layers):
                network = NamedLayers(make(num_classes=0), layers)
            elif timm.models.is_model_in_modules(settings.name, _TRANSFORMERS):
                # Position embeddings are resampled to the size of the image, whose sides may be any
                # multiple of a patch.
                network = TokenGrids(make(num_classes=0, dynamic_img_size=True), layers)
            else:
                network = make(features_only=True, out_indices=layers)
        except (AssertionError, IndexError, ValueError) as error:
            raise ConfigError(
                f"backbone.layers {layers} do not fit '{settings.name}': {error}"
            ) from None
    return network.eval()


def _are_names(layers: Layers) -> bool:
    return any(isinstance(layer, str) for layer in layers)


def state_in_use(network: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that the feature maps depend on, by name.

    A network with numbered layers has no others. With named layers the network is whole, and the
    weights of its end may be random, where the weights file has none for it.

    Raises:
        ConfigError: on named modules that are not run, or do not give feature maps.
    """
    state: dict[str, Tensor] = network.state_dict()
    if not isinstance(network, NamedLayers):
        return state
    owners = {name.rpartition(".")[0] for name in _parameters_in_use(network)}
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] in owners}


def _parameters_in_use(network: NamedLayers) -> Sequence[str]:
    """Return the names of the parameters that the feature maps depend on.

    They are those for which the sum of the maps has a gradient. On torch's "meta" device nothing is
    computed but shapes.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    names = [name for name, _ in network.named_parameters()]
    parameters = [shapes[name].requires_grad_() for name in names]
    size = network.network.pretrained_cfg["input_size"]  # type: ignore[index]
    with torch.enable_grad():
        maps = functional_call(network, shapes, (torch.empty(1, *size, device="meta"),))
        total = torch.stack([feature_map.sum() for feature_map in maps]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [name for name, found in zip(names, gradients, strict=True) if found is not None]
