"""infer: pixels to image scores and anomaly maps, with the model of the fragment's group.

The one stage that is expensive to start: an actor on Ray, built once by a `Scorer`'s settings and
URIs, which are all that travels to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.config import BackboneSettings
from pipeline.errors import ModelError
from pipeline.features.backbone import Backbone, Extractor, load_backbone
from pipeline.lake.folder import Folder
from pipeline.lake.models import Manifest
from pipeline.methods import build
from pipeline.methods.contract import Method
from pipeline.stages.batch import FragmentBatch, advance
from pipeline.stages.models import (
    GroupModel,
    Holders,
    load_group,
    load_state,
    sharded_search,
)

# Models of this many groups stay loaded; fragments come in path order, so groups rarely alternate.
_MODELS = 4


@dataclass(frozen=True)
class Scorer:
    """Settings of the infer stage; `start` loads the backbone and returns the stage."""

    model: Folder
    manifest: Manifest
    # Where the weights are now; their digest must be the manifest's.
    weights: str | None
    batch_size: int
    threads: int = 1
    # Group -> who holds its bank, where it does not fit one process.
    holders: Mapping[str, Holders] = field(default_factory=dict)

    def start(self) -> "Infer":
        """Return the stage, with the backbone loaded and checked."""
        method = build(self.manifest.method, self.manifest.method_options)
        backbone = load_checked_backbone(self.manifest, self.weights)
        extractor = Extractor(backbone, method.embed, self.batch_size, self.threads)
        return Infer(self, method, extractor)


class Infer:
    """Stage: adds `image_score` to the rows, and replaces pixels by anomaly maps."""

    def __init__(self, scorer: Scorer, method: Method, extractor: Extractor) -> None:
        self._method = method
        self._extractor = extractor
        self._scorer = scorer
        self._load = lru_cache(_MODELS)(self._load_group)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch with scores and float32 maps (images, rows, columns)."""
        return advance("infer", self._infer, table).to_arrow()

    def _infer(self, batch: FragmentBatch) -> FragmentBatch:
        scores = np.empty(0, np.float32)
        maps = np.empty((0, 0, 0), np.float32)
        if len(batch.array):
            model: GroupModel = self._load(batch.fragment.group)
            # A few images at a time: the embeddings of one are up to 3 MB.
            size = 32
            parts = [
                self._method.score(
                    self._extractor(batch.array[i : i + size]), model.state, model.search
                )
                for i in range(0, len(batch.array), size)
            ]
            scores = np.concatenate([part.image_scores for part in parts])
            maps = np.concatenate([part.anomaly_maps for part in parts])
        is_ok = np.array([status == "ok" for status in batch.statuses()], bool)
        column = np.zeros(len(is_ok), np.float32)
        column[is_ok] = scores
        rows = batch.rows.append_column("image_score", pa.array(column, pa.float32(), mask=~is_ok))
        return replace(batch, rows=rows, array=maps)

    def _load_group(self, group: str) -> GroupModel:
        scorer = self._scorer
        record = scorer.manifest.groups[group]
        if group in scorer.holders:
            search = sharded_search(scorer.holders[group], record)
            return GroupModel(load_state(scorer.model, record), search)
        return load_group(scorer.model, record, scorer.threads)


def load_checked_backbone(manifest: Manifest, weights: str | None) -> Backbone:
    """Return the backbone of a model.

    Raises:
        ModelError: if the weights are not those that the model was fitted with.
    """
    fitted = manifest.backbone
    settings = BackboneSettings(name=fitted.name, layers=fitted.layers, weights=weights)
    backbone = load_backbone(settings, seed=manifest.settings.seed)
    if backbone.weights_sha256 != fitted.weights_sha256:
        raise ModelError(
            f"weights '{weights or 'timm hub'}' of {fitted.name} have SHA-256 "
            f"{backbone.weights_sha256[:12]}…, the model was fitted with "
            f"{fitted.weights_sha256[:12]}… from '{fitted.weights or 'timm hub'}'; "
            "name those with --set backbone.weights=, or fit again"
        )
    return backbone
