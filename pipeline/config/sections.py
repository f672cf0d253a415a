"""Settings of the network, the method, its index, the scores, the verdicts and of storage."""

import re
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from patchlake.pipeline.config.frozen import Frozen, Scalar

# timm's `out_indices`, or names of a network's modules.
Layers = tuple[Annotated[int, Field(ge=0)], ...] | tuple[str, ...]
# Each heatmap a file, or all of a fragment in a zip (`pipeline.score_table.packed`).
HeatmapStore = Literal["files", "packed"]
# Which images a heatmap is drawn of.
Heatmaps = Literal["all", "anomalous", "none"]


class BackboneSettings(Frozen):
    """The frozen network: its name, where its weights are, and the layers that are read."""

    # `lite0`, `lite1`, `lite2`, whose weights are installed (features/packaged.py), or a timm tag.
    name: str = "lite0"
    # None: the package, or the timm hub. "untrained": random, seeded. Else a path or URI of a
    # safetensors file.
    weights: str | None = None
    # timm's `out_indices` (2 and 3 are layer2 and layer3 of a ResNet, 11 the last block of a
    # ViT-S), or names of modules: `bn1`, `blocks.0`. None: the method's own.
    layers: Annotated[Layers, Field(min_length=1)] | None = None
    # bfloat16 takes half the time where the processor multiplies it: that is `auto`, which is
    # float32 elsewhere. A model keeps the one that it was fitted in.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("layers")
    @classmethod
    def _named_once(cls, layers: Layers | None) -> Layers | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError(f"{list(layers)} names a layer twice; name each once")
        return layers


class MethodSettings(BaseModel):
    """The method's name; the other names are the fields of its dataclass."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Scalar]

    name: str = "patchcore"

    def options(self) -> dict[str, Scalar]:
        """Return what is set beside the name."""
        return dict(self.__pydantic_extra__)


class IndexSettings(Frozen):
    """How the memory bank is stored and searched."""

    kind: Literal["exact", "hnsw", "ivf"] = "exact"
    # efSearch of HNSW (64) or nprobe of IVF (16); None: those.
    effort: PositiveInt | None = None
    # An approximate index that finds the nearest row less often, of held-out patches, is refused.
    min_recall: float = Field(default=0.99, ge=0, le=1)
    # One file of the bank stays well under what object stores take in a single put.
    shard_bytes: PositiveInt = 256 * 2**20


class ScoreSettings(Frozen):
    """What a scoring run writes beside the numbers."""

    # Of every image, or of those that are anomalous; where a group has no verdicts, of all.
    heatmaps: Heatmaps = "anomalous"
    # A file an image, or one a fragment: a million pictures a night are a million puts.
    heatmap_store: HeatmapStore = "files"
    # Fixes the rows' time; else it is the time at which the run was first started.
    scored_at: AwareDatetime | None = None
    # catalog.namespace.table that the parts are published in; they do not depend on it.
    iceberg_table: str | None = None


class VerdictSettings(Frozen):
    """What is called anomalous. A model's own are used where none are named."""

    # Share of good images of new parts that may be called anomalous, at the most.
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def over(self, fitted: "VerdictSettings") -> "VerdictSettings":
        """Return a model's settings, with those that the user has named in their place."""
        named = {name: getattr(self, name) for name in self.model_fields_set}
        return fitted.model_copy(update=named)


class StorageSettings(Frozen):
    """How S3 is reached. They travel to the workers; credentials do not, and are no settings."""

    # URL of another store than AWS's; None: AWS_ENDPOINT_URL, or AWS.
    endpoint: str | None = None
    # None: AWS_REGION, or what the AWS configuration says.
    region: str | None = None
    # Unsigned requests, for public buckets.
    anonymous: bool = False
    # Of one request, after waits of 0.1 s, doubled each time up to 20 s: some 25 s in all.
    retries: NonNegativeInt = 8
    # Without a byte from the store for so long, a request has failed.
    timeout_s: PositiveFloat = 30.0

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError("an endpoint is http(s)://HOST[:PORT], without user or password")
        return endpoint


# Whatever else a URL can hold may be a secret, and settings are written down.
_ENDPOINT = re.compile(r"https?://[^/@?#]+/?")
