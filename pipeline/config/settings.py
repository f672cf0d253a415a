"""One typed tree of settings."""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from patchlake.pipeline.config.columns import ColumnSettings
from patchlake.pipeline.config.frozen import Frozen, Raw
from patchlake.pipeline.config.images import ImageSettings
from patchlake.pipeline.config.sections import (
    BackboneSettings,
    IndexSettings,
    MethodSettings,
    ScoreSettings,
    StorageSettings,
    VerdictSettings,
)

# Of a fragment, whose pictures are in memory until they are put: 120 MB at some 30 KB each, and
# 3.2 GB would be the most if all were noise of 512 x 512 pixels.
MOST_PACKED = 4096


class Settings(Frozen):
    """All settings. Those under `image` and `backbone` are fixed in a model once it is fitted."""

    preset: str | None = None
    seed: int = 0
    # Whether a fit leaves out the training images that look anomalous themselves.
    robust: bool = False
    # Which rows a fit and its updates take: `good`: those labelled so, not of a split to test on;
    # `all`: every row, whatever its label and split.
    fit_on: Literal["good", "all"] = "good"
    fragment_images: PositiveInt = 256
    # Inference workers on Ray; None: what the cluster has.
    workers: PositiveInt | None = None
    # Bytes that one process may hold of a fit's rows, or of a memory bank and its search; None:
    # half of this machine's memory.
    memory_budget: PositiveInt | None = None
    # A fragment that raises, or kills its worker, is tried so often by each stage, then given up.
    fragment_attempts: PositiveInt = 3
    # Above this share of error rows in the plan the job ends with exit code 3.
    max_failed: float = Field(default=0.01, ge=0, le=1)
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    method: MethodSettings = MethodSettings.model_validate({})
    index: IndexSettings = IndexSettings()
    score: ScoreSettings = ScoreSettings()
    verdict: VerdictSettings = VerdictSettings()
    columns: ColumnSettings = ColumnSettings()
    storage: StorageSettings = StorageSettings()

    @field_validator("score")
    @classmethod
    def _fits_a_zip(cls, score: ScoreSettings, info: ValidationInfo) -> ScoreSettings:
        images = info.data.get("fragment_images", 0)
        packed = score.heatmap_store == "packed" and score.heatmaps != "none"
        if packed and images > MOST_PACKED:
            raise ValueError(
                f"a fragment of {images} images has more heatmaps than go into one file, "
                f"{MOST_PACKED}; set a smaller fragment_images, or score.heatmap_store=files"
            )
        return score

    @field_validator("columns")
    @classmethod
    def _one_region(cls, columns: ColumnSettings, info: ValidationInfo) -> ColumnSettings:
        image = info.data.get("image")
        if columns.roi and image is not None and image.roi:
            raise ValueError(
                f"columns.roi '{columns.roi}' has a region for each image, and image.roi one for "
                f"groups {sorted(image.roi)}: set one of the two"
            )
        return columns


# Settings that there were, and that changed no result: what records say of them is passed over.
_RETIRED = ("batch_size",)


def _without_retired(recorded: object) -> object:
    if isinstance(recorded, dict):
        return {name: value for name, value in recorded.items() if name not in _RETIRED}
    return recorded


# Settings as a model or a run of an earlier version may have recorded them.
RecordedSettings = Annotated[Settings, BeforeValidator(_without_retired)]


def digest(value: BaseModel | Raw) -> str:
    """Return the SHA-256 (hex) of settings, in an order that does not depend on how they came."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def known_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += known_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
