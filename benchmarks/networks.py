"""ResNet-18 as the published image pipelines have it: torchvision's, with its own transforms.

Only torch and torchvision are imported: it is what somebody would write without patchlake.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torchvision import transforms
from torchvision.models import ResNet18_Weights, resnet18

CUTS = ("layer3", "whole")
# Values of an embedding.
DIMENSIONS = {"layer3": 256, "whole": 512}


def embedding_network(weights: Path, cut: str) -> torch.nn.Module:
    """Return the network with the weights of a file, as far as that has them.

    Args:
        weights: Safetensors, by the names that torchvision and timm share.
        cut: "layer3" ends there, "whole" before the classifier; both with the mean over the image.
    """
    network = resnet18()
    # The file may have only the layers that are used. Random ones take the same time.
    network.load_state_dict(load_file(weights), strict=False)
    network.fc = torch.nn.Identity()
    if cut == "layer3":
        kept = list(network.children())[:-3]
        network = torch.nn.Sequential(*kept, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    built: torch.nn.Module = network.eval()
    return built


def transform() -> Callable[[np.ndarray], torch.Tensor]:
    """Return what makes an image (rows, columns, 3) of bytes the network's input.

    As published: the shorter side to 256 pixels, the middle 224 x 224, standardised.
    """
    steps = [transforms.ToTensor(), ResNet18_Weights.DEFAULT.transforms()]
    composed: Callable[[np.ndarray], torch.Tensor] = transforms.Compose(steps)
    return composed
