"""Every setting: one typed tree, from a preset, a YAML file, `--set a.b=c` and flags.

`method.*` beyond `method.name` belongs to the method's own dataclass (`pipeline.methods`).
"""

from patchlake.pipeline.config.columns import VOCABULARY, ColumnSettings
from patchlake.pipeline.config.frozen import Raw, Scalar
from patchlake.pipeline.config.images import ImageFormat, ImageSettings, TileSettings
from patchlake.pipeline.config.loading import check_settings, load_settings, nearest
from patchlake.pipeline.config.sections import (
    BackboneSettings,
    Heatmaps,
    HeatmapStore,
    IndexSettings,
    Layers,
    MethodSettings,
    ScoreSettings,
    StorageSettings,
    VerdictSettings,
)
from patchlake.pipeline.config.settings import (
    MOST_PACKED,
    RecordedSettings,
    Settings,
    digest,
    known_names,
)

__all__ = [
    "MOST_PACKED",
    "VOCABULARY",
    "BackboneSettings",
    "ColumnSettings",
    "HeatmapStore",
    "Heatmaps",
    "ImageFormat",
    "ImageSettings",
    "IndexSettings",
    "Layers",
    "MethodSettings",
    "Raw",
    "RecordedSettings",
    "Scalar",
    "ScoreSettings",
    "Settings",
    "StorageSettings",
    "TileSettings",
    "VerdictSettings",
    "check_settings",
    "digest",
    "known_names",
    "load_settings",
    "nearest",
]
