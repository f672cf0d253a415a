"""A network in bfloat16: 8 bits, in about half the time where the processor multiplies them.

bfloat16 has the range of float32 and 8 bits of its 24. Products are summed in float32, and each
layer's result is rounded. Three things keep what that costs small:

* BatchNorm is folded into the convolution before it, w' = w gamma / sqrt(variance + eps), in
  float32: its result is rounded once instead of twice.
* Layers whose grid is finer than a quarter of the image's side stay in float32. Those behind them
  take differences of what they give, and the rounding stays. With EfficientNet-Lite0 they are the
  stem and the first block, and features differ from float32 by 3 % instead of 7; with ResNet-18 it
  is the first convolution, and 1.3 instead of 1.8 %.
* Sums of a residual network with a float32 side stay float32 (torch's type promotion).

Where a processor has no products of bfloat16, the same layers compute in float32 with weights,
inputs and results rounded to bfloat16. What is left is the order of the sums, by which two
processors that have such products differ as well: features of ResNet-18 by 0.2 to 0.3 %.
"""

import platform
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Precision = Literal["float32", "bfloat16"]

# The layers that take nearly all of the time.
_PRODUCTS = (nn.Conv2d, nn.Linear)
# Those that give values that they were given. The others (a BatchNorm or LayerNorm that is left,
# means) stay in float32: what they subtract or divide by is not rounded.
_PASSING = (nn.Identity, nn.Dropout, nn.MaxPool2d)
# A folded network differs from the one as it was by some 1e-6. By more, and it was folded wrongly.
_FOLDED_ALIKE = 1e-3


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether products of bfloat16 are faster than those of float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Before torch 2.10 there is no way to ask.
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if platform.machine() in ("aarch64", "arm64"):
        return bool(known.get("bf16"))
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def to_bfloat16(
    network: nn.Module, size: tuple[int, int], device: torch.device, *, native: bool
) -> None:
    """Change a network in place, so that its coarser layers compute in bfloat16.

    Args:
        network: In inference mode, in float32, on the device.
        size: Rows and columns of an image that it takes.
        device: Where it is.
        native: Whether the device multiplies bfloat16. If not, the same is done by rounding.

    Raises:
        RuntimeError: if the network uses its weights by another way than by calling its layers, or
            whatever else torch or the network raises for what it does not take.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *size, generator=generator).to(device)
    # Not in inference mode: there, tensors do not count how often they were changed in place.
    with torch.no_grad():
        _fold(network, image)
        for layer in _coarse_layers(network, image):
            if native:
                _compute_in_bfloat16(layer)
            else:
                _round_to_bfloat16(layer)
        network(image)


def _compute_in_bfloat16(layer: nn.Module) -> None:
    if isinstance(layer, _PRODUCTS):
        layer.to(torch.bfloat16)
    if isinstance(layer, _PRODUCTS) or _is_activation(layer):
        layer.register_forward_pre_hook(partial(_cast_inputs, torch.bfloat16))
    elif not isinstance(layer, _PASSING):
        layer.register_forward_pre_hook(partial(_cast_inputs, torch.float32))


def _round_to_bfloat16(layer: nn.Module) -> None:
    """Let a layer compute in float32 what `_compute_in_bfloat16` would let it compute."""
    if isinstance(layer, _PRODUCTS):
        for parameter in layer.parameters():
            parameter.data = _rounded(parameter.data)
        layer.register_forward_hook(lambda _layer, _inputs, output: _rounded(output))
    if isinstance(layer, _PRODUCTS) or _is_activation(layer):
        layer.register_forward_pre_hook(lambda _layer, inputs: tuple(map(_rounded, inputs)))


def _is_activation(layer: nn.Module) -> bool:
    # Of torch.nn.modules.activation or timm.layers.activations.
    return "activation" in type(layer).__module__


def _cast_inputs(
    kind: torch.dtype, _layer: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return tuple(_as(kind, one) for one in inputs)


def _as(kind: torch.dtype, value: Tensor) -> Tensor:
    return value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value


def _rounded(value: Tensor) -> Tensor:
    return _as(torch.float32, _as(torch.bfloat16, value))


def _coarse_layers(network: nn.Module, image: Tensor) -> list[nn.Module]:
    """Return the innermost modules whose results are no finer than a quarter of the image's side.

    Those that are not called are left out; a module that is called with several sizes counts by its
    finest.
    """
    fine: dict[nn.Module, bool] = {}

    def note(layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            # The third axis is rows in (images, channels, rows, columns), and columns in (images,
            # rows, columns, channels). Tokens have no such axis, and are coarse.
            is_fine = output.ndim == image.ndim and 4 * output.shape[2] > image.shape[2]
            fine[layer] = fine.get(layer, False) or is_fine

    innermost = [module for module in network.modules() if not any(module.children())]
    _watched(network, image, dict.fromkeys(innermost, note))
    return [layer for layer, is_fine in fine.items() if not is_fine]


def _fold(network: nn.Module, image: Tensor) -> None:
    """Fold each BatchNorm into the convolution whose result it takes, and nobody else.

    Which those are is seen in one pass: the tensor that a convolution has returned, unchanged, is
    what the BatchNorm is given. All is put back as it was if the folded network computes something
    else, as it would if another part of the network took the convolution's result, too.
    """
    before: list[Tensor] = network(image)
    names = {module: name for name, module in network.named_modules()}
    pairs = _convolutions_with_norms(network, image)
    undo = [_fold_pair(network, names[norm], conv, norm) for conv, norm in pairs]
    after: list[Tensor] = network(image)
    if not all(
        (one - other).norm() <= _FOLDED_ALIKE * other.norm()
        for one, other in zip(after, before, strict=True)
    ):
        for put_back in undo:
            put_back()


def _convolutions_with_norms(
    network: nn.Module, image: Tensor
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each BatchNorm that is given a convolution's result as it is, with the convolution."""
    # The tensors are kept, or another one might get the same `id`.
    results: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer] += 1
        if isinstance(layer, nn.Conv2d):
            results[id(output)] = layer, output, output._version  # noqa: SLF001 - the only way
        elif isinstance(layer, nn.BatchNorm2d):
            conv, _, version = results.get(id(inputs[0]), (None, None, None))
            # Where the result was changed in place meanwhile, it is not the convolution's any more.
            if conv is not None and version == inputs[0]._version:  # noqa: SLF001
                pairs.append((conv, layer))

    # Where somebody reads a module's result (timm's and our hooks do), it has to stay what it is.
    watched = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not module._forward_hooks  # noqa: SLF001
    ]
    _watched(network, image, dict.fromkeys(watched, note))
    return [pair for pair in pairs if all(calls[layer] == 1 for layer in pair)]


def _fold_pair(
    network: nn.Module, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d
) -> Callable[[], None]:
    """Put the BatchNorm of this name into the convolution; return what puts it back."""
    weight, bias = conv.weight, conv.bias
    folded = fuse_conv_bn_eval(conv, norm)
    conv.weight, conv.bias = folded.weight, folded.bias
    for parameter in conv.parameters():
        parameter.requires_grad = False
    # timm's BatchNorm may have the activation behind it in itself.
    network.set_submodule(name, getattr(norm, "act", nn.Identity()))

    def put_back() -> None:
        conv.weight, conv.bias = weight, bias
        network.set_submodule(name, norm)

    return put_back


def _watched(
    network: nn.Module, image: Tensor, watchers: dict[nn.Module, Callable[..., None]]
) -> None:
    """Pass an image through the network, with hooks at some of its modules for this one pass."""
    hooks = [module.register_forward_hook(watch) for module, watch in watchers.items()]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
