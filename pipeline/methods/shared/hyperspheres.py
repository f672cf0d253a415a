"""What CFA learns, and from what: a linear descriptor of patches, and a loss around fixed centres.

Lee, Lee, Song, "CFA: Coupled-Hypersphere-Based Feature Adaptation for Target-Oriented Anomaly
Localization", IEEE Access 2022 (arXiv 2206.04325).

Gradients of the loss are written out: they flow through the few centres near a patch only, so the
search for these needs none, and no array of patches x centres x dim is ever made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.pruned import PrunedSearch

# The centres are a linear image of means of feature maps, and so nearly of low rank: of 448
# dimensions 128 hold 99.96 % of their variance. A search among 3136 of them for the 6 nearest to
# 3136 patches took, on one thread and in ms: 32 components 290, 64 65 to 130, 96 69, 128 60 to 70,
# 256 80, dense 235, and half of all that on two. One float32 product and torch.topk take 104 + 19
# and a product of bfloat16 41, both before the distances are measured, and are not exact.
_COMPONENTS = 128
# Below, the dense search takes less than a millisecond a hundred queries.
_FEWEST_PRUNED = 512


def describe(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Return the descriptor of each patch: (rows * columns of the finest map, dim).

    W (f, x, y) + b with f the layers side by side, brought to the finest grid bilinearly, and x and
    y in [-1, 1]: a 1 x 1 convolution with coordinates. Convolution and interpolation are both
    linear and commute, so each layer is convolved on its own grid: 0.32 instead of 1.26 GFLOP an
    image of 56 x 56 patches and 448 channels.

    Args:
        maps: One image's (rows, columns, channels), by layer.
        weight: (dim, channels of all layers + 2), x and y last.
        bias: (dim).
    """
    grid = max((tuple(layer.shape[:2]) for layer in maps), key=math.prod)
    described = functional.linear(_coordinates(grid), weight[:, -2:], bias)
    begin = 0
    for layer in maps:
        channels = layer.shape[-1]
        part = functional.linear(layer, weight[:, begin : begin + channels])
        described = described + _enlarged(part, grid).reshape(described.shape)
        begin += channels
    return described


def _coordinates(grid: tuple[int, ...]) -> Tensor:
    rows, columns = grid
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _enlarged(part: Tensor, grid: tuple[int, ...]) -> Tensor:
    if tuple(part.shape[:2]) == grid:
        return part
    # In this order: torch then takes the map for channels-last, and is three times as fast.
    image = part[None].permute(0, 3, 1, 2)
    enlarged = functional.interpolate(image, size=grid, mode="bilinear", align_corners=False)
    return enlarged.permute(0, 2, 3, 1)[0]


@dataclass(frozen=True)
class Parameters:
    """What is learned: the descriptor's convolution and the hyperspheres' radius."""

    weight: Float32[np.ndarray, "dim channels_and_2"]
    bias: Float32[np.ndarray, " dim"]
    radius: Float32[np.ndarray, ""]

    @classmethod
    def drawn(
        cls, channels: int, dim: int, radius: float, rng: np.random.Generator
    ) -> "Parameters":
        """Return random ones: uniform within 1 / sqrt(inputs), torch's default for a layer."""
        limit = 1 / math.sqrt(channels + 2)
        weight = rng.uniform(-limit, limit, (dim, channels + 2)).astype(np.float32)
        bias = rng.uniform(-limit, limit, dim).astype(np.float32)
        return cls(weight, bias, np.array(radius, np.float32))

    @property
    def dim(self) -> int:
        """Dimensions of the descriptor."""
        return len(self.bias)

    @classmethod
    def of(cls, flat: Float32[np.ndarray, " parameters"], dim: int) -> "Parameters":
        """Return parameters as views of one vector."""
        return cls(flat[: -dim - 1].reshape(dim, -1), flat[-dim - 1 : -1], flat[-1:].reshape(()))

    def flat(self) -> Float32[np.ndarray, " parameters"]:
        """Return all in one vector."""
        return np.concatenate([self.weight.ravel(), self.bias, self.radius.ravel()])


@dataclass(frozen=True)
class Loss:
    """The two terms around the centres: K attract a patch, the next J push it off.

    L_att = 1 / nu mean max(0, D_k - r^2) and L_rep = 1 / nu mean max(0, r^2 - D_j - alpha), with D
    the squared distances to the nearest centres, k = 1..K and j = K+1..K+J.
    """

    attracting: int
    repelling: int
    nu: float
    alpha: float

    def __call__(
        self, squared: Float64[np.ndarray, "patches neighbours"], radius: float
    ) -> tuple[float, Float64[np.ndarray, "patches neighbours"], float]:
        """Return the loss and its derivatives with respect to D and to r.

        Args:
            squared: D to the K + J nearest centres, the nearest first.
            radius: r.
        """
        k = self.attracting
        outside = squared[:, :k] - radius**2
        inside = radius**2 - squared[:, k : k + self.repelling] - self.alpha
        loss = (np.maximum(outside, 0).mean() + np.maximum(inside, 0).mean()) / self.nu
        by_outside = (outside > 0) / (outside.size * self.nu)
        by_inside = (inside > 0) / (inside.size * self.nu)
        by_radius = 2 * radius * (by_inside.sum() - by_outside.sum())
        return float(loss), np.concatenate([by_outside, -by_inside], axis=1), float(by_radius)


@dataclass(frozen=True)
class Hyperspheres:
    """Fixed centres, and the loss around them. Build it with `around`."""

    loss: Loss
    search: PrunedSearch
    _centres: Tensor

    @classmethod
    def around(
        cls, centres: Float32[np.ndarray, "bank dim"], loss: Loss, *, threads: int
    ) -> "Hyperspheres":
        """Return the hyperspheres around these centres, of which it keeps a copy."""
        # What comes from another process is read-only, which torch warns of.
        own = np.array(centres)
        return cls(loss, search_among(own, threads=threads), torch.from_numpy(own))

    def gradient(
        self, maps: Sequence[Tensor], parameters: "Parameters"
    ) -> tuple[float, Float32[np.ndarray, " parameters"]]:
        """Return one image's loss and its gradient, in the order of `Parameters.flat`.

        Searching takes 60 of 85 ms for 3136 patches and centres of 448 dimensions on one thread;
        the search is exact, so threads and its settings can change no bit.
        """
        weight = torch.tensor(parameters.weight, requires_grad=True)
        bias = torch.tensor(parameters.bias, requires_grad=True)
        described = describe(maps, weight, bias)
        patches = described.detach()
        neighbours = self.loss.attracting + self.loss.repelling
        distances, rows = self.search.nearest(patches.numpy(), neighbours)
        loss, by_squared, by_radius = self.loss(
            distances.astype(np.float64) ** 2, float(parameters.radius)
        )
        by_patches = self._by_patches(patches, rows, torch.from_numpy(by_squared).float())
        found = torch.autograd.grad(described, (weight, bias), by_patches)
        by_descriptor = [part.numpy().ravel() for part in found]
        return loss, np.concatenate([*by_descriptor, np.array([by_radius], np.float32)])

    def _by_patches(
        self, patches: Tensor, rows: Int64[np.ndarray, "patches neighbours"], by_squared: Tensor
    ) -> Tensor:
        """Return sum_k dL/dD_k 2 (p - c_k) for each patch p: finite where p is a centre."""
        weighted = functional.embedding_bag(
            torch.from_numpy(rows), self._centres, mode="sum", per_sample_weights=by_squared
        )
        return 2 * (by_squared.sum(dim=1, keepdim=True) * patches - weighted)


def search_among(
    centres: Float32[np.ndarray, "bank dim"], *, threads: int | None = None
) -> PrunedSearch:
    """Return the exact search that is fast for descriptors among their centres.

    Args:
        centres: The rows.
        threads: Blocks of queries at a time; None is as many as torch would use.
    """
    components = _COMPONENTS if len(centres) >= _FEWEST_PRUNED else 0
    return PrunedSearch.over(ExactSearch.over(centres), components, threads=threads)
