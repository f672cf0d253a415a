"""One row of scores, as a person looks at it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A part of an image, in whole pixels of the upright image."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """A row of scores, of one image that has a score. Names are those of `tables.SCORES`."""

    group: str
    image_id: str
    night: str
    image_score: float
    threshold: float | None
    p_value: float | None
    is_anomalous: bool | None
    # None: no verdict, or no map.
    regions: tuple[Box, ...] | None
    heatmap_path: str | None
    width: int | None
    height: int | None
    model_id: str
    part_id: str | None
    source_path: str
    source_row: int
