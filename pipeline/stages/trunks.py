"""The networks of a model or an ensemble: members with the same backbone share its feature maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from patchlake.pipeline.config import Layers
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.features.summary import SUMMARY, summary_of
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.images.geometry import Geometries, Geometry
from patchlake.pipeline.methods.shared.contract import Method


@dataclass(frozen=True)
class _Embed:
    method: Method
    # Which of the trunk's feature maps are this member's.
    positions: Sequence[int]
    seed: int
    # Whether it is the first of all members, by whose maps nights are compared.
    is_first: bool

    def __call__(self, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
        own = [feature_maps[position] for position in self.positions]
        embedded = self.method.embed(own, seed=self.seed)
        return {**embedded, SUMMARY: summary_of(own)} if self.is_first else embedded


@dataclass(frozen=True)
class _EmbedAll:
    """The embeddings of several members, each name behind the member's number."""

    embeds: Mapping[int, _Embed]

    def __call__(self, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            f"{number}/{name}": tensor
            for number, embed in self.embeds.items()
            for name, tensor in embed(feature_maps).items()
        }


@dataclass(frozen=True)
class Trunk:
    """A backbone that makes the embeddings of some members, and the inputs that it takes."""

    extractor: Extractor
    geometry: Geometry | Geometries


def trunks_of(members: Sequence[Member], methods: Sequence[Method]) -> list[Trunk]:
    """Return the backbones, loaded and checked, each with the members that it serves.

    An extractor returns each member's embeddings behind the member's number: "1/patches". The first
    member's have the summaries of the images among them (`features.summary.SUMMARY`).

    Raises:
        ModelError: if weights are not those that a model was fitted with.
    """
    shared: dict[tuple[object, ...], list[int]] = {}
    for number, member in enumerate(members):
        shared.setdefault(_network(member), []).append(number)
    return [_trunk(members, numbers, methods) for numbers in shared.values()]


def _network(member: Member) -> tuple[object, ...]:
    """Return what members must have in common to share feature maps."""
    network = member.manifest.backbone
    # Layers by number can be read together; by name they are shared if they are the same.
    named = network.layers if isinstance(network.layers[0], str) else ()
    tile = member.manifest.geometry.tile
    return network.name, network.precision, member.weights, named, member.geometry, tile


def _trunk(every: Sequence[Member], numbers: Sequence[int], methods: Sequence[Method]) -> Trunk:
    members = [every[number] for number in numbers]
    layers = _joined_layers([member.manifest.backbone.layers for member in members])
    if len(members) == 1:
        backbone = members[0].checked_backbone()
    else:
        # The digest is over the layers in use: each member's own are checked by themselves.
        for member in members:
            member.checked_backbone()
        backbone = members[0].backbone(layers)
    embeds = {
        number: _Embed(
            methods[number],
            sorted(layers.index(layer) for layer in member.manifest.backbone.layers),
            member.manifest.settings.seed,
            number == 0,
        )
        for number, member in zip(numbers, members, strict=True)
    }
    extractor = Extractor(backbone, _EmbedAll(embeds), members[0].manifest.geometry.tile)
    return Trunk(extractor, members[0].geometry)


def _joined_layers(layers: Sequence[Layers]) -> Layers:
    """Return all layers that are named, each once: numbers rising, names as they come."""
    every = dict.fromkeys(layer for some in layers for layer in some)
    numbers = sorted(layer for layer in every if isinstance(layer, int))
    return tuple(numbers) if numbers else tuple(str(layer) for layer in every)
