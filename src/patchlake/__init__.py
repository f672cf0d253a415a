"""patchlake finds defects in images at the scale of a data lake.

    import patchlake

    patchlake.ingest("pictures", "images")
    patchlake.fit("images", "model")
    patchlake.score("images", "model", "scores")
    frame = patchlake.open_scores("scores").to_table().to_pandas()

    detector = patchlake.load("model")
    (found,) = detector.score(["camera/0001.png"])
    found.image_score, found.heatmap().save("0001.png")

`pipeline.driver.library` describes each function. Names are looked up when they are first used, so
that the import itself costs nothing.
"""

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchlake.pipeline.config import Settings, load_settings
    from patchlake.pipeline.driver.choose import Comparison
    from patchlake.pipeline.driver.desk import Reviewed
    from patchlake.pipeline.driver.detector import Detection, Detector
    from patchlake.pipeline.driver.evaluate import Metrics
    from patchlake.pipeline.driver.ingest import Ingested
    from patchlake.pipeline.driver.library.models import (
        choose,
        fit,
        ingest,
        load,
        settings,
        update,
        withdraw,
    )
    from patchlake.pipeline.driver.library.scores import (
        compact,
        evaluate,
        mutual,
        open_scores,
        score,
        status,
    )
    from patchlake.pipeline.driver.library.verdicts import (
        drift,
        parts,
        picture,
        report,
        review,
        worst,
    )
    from patchlake.pipeline.driver.observer import Observer
    from patchlake.pipeline.driver.report import Report
    from patchlake.pipeline.driver.status import RunStatus
    from patchlake.pipeline.driver.worst import Worst
    from patchlake.pipeline.errors import (
        ConfigError,
        DiskFull,
        FileDamaged,
        FragmentsFailed,
        InputChanged,
        ModelError,
        PatchlakeError,
        StorageError,
        StorageRefused,
        TableError,
        WorkersLost,
    )
    from patchlake.pipeline.model_store.models import Manifest
    from patchlake.pipeline.record.runs import Summary
    from patchlake.pipeline.score_table.scored import ScoredImage

__all__ = [
    "Comparison",
    "ConfigError",
    "Detection",
    "Detector",
    "DiskFull",
    "FileDamaged",
    "FragmentsFailed",
    "Ingested",
    "InputChanged",
    "Manifest",
    "Metrics",
    "ModelError",
    "Observer",
    "PatchlakeError",
    "Report",
    "Reviewed",
    "RunStatus",
    "ScoredImage",
    "Settings",
    "StorageError",
    "StorageRefused",
    "Summary",
    "TableError",
    "WorkersLost",
    "Worst",
    "choose",
    "compact",
    "drift",
    "evaluate",
    "fit",
    "ingest",
    "load",
    "load_settings",
    "mutual",
    "open_scores",
    "parts",
    "picture",
    "report",
    "review",
    "score",
    "settings",
    "status",
    "update",
    "withdraw",
    "worst",
]

_ERRORS = (
    "ConfigError DiskFull FileDamaged FragmentsFailed InputChanged ModelError PatchlakeError "
    "StorageError StorageRefused TableError WorkersLost"
)
_HOMES = {
    "driver.library.models": "choose fit ingest load settings update withdraw",
    "driver.library.scores": "compact evaluate mutual open_scores score status",
    "driver.library.verdicts": "drift parts picture report review worst",
    "errors": _ERRORS,
    "config": "Settings load_settings",
    "driver.choose": "Comparison",
    "driver.desk": "Reviewed",
    "driver.detector": "Detection Detector",
    "driver.evaluate": "Metrics",
    "driver.ingest": "Ingested",
    "driver.observer": "Observer",
    "driver.report": "Report",
    "driver.status": "RunStatus",
    "driver.worst": "Worst",
    "model_store.models": "Manifest",
    "record.runs": "Summary",
    "score_table.scored": "ScoredImage",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

# A library's: whoever wants to see the lines adds a handler.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'patchlake' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"patchlake.pipeline.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
