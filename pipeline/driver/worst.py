"""worst: scores/ -> the images that a person looks at first, and a contact sheet of them."""

import logging
from dataclasses import dataclass

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.chosen import Choice, choose
from patchlake.pipeline.driver.dataset import open_table, version_of
from patchlake.pipeline.driver.pictured import Pictures, decoded_apart
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.images.pictures import picture_size
from patchlake.pipeline.images.sheet import MOST, SIDE, Tile, contact_sheet
from patchlake.pipeline.score_table.scored import ScoredImage
from patchlake.pipeline.shown import counted, listed, printable, shown
from patchlake.pipeline.storage.folder import Folder, split_uri

log = logging.getLogger(__name__)

_SHOWN = 3


@dataclass(frozen=True)
class Worst:
    """The worst images of a score table, the worst first."""

    version: str
    images: list[ScoredImage]
    # Rows of that group and night with a score, and without one.
    scored: int
    without_score: int


def run(
    scores: str,
    count: int = 20,
    *,
    group: str | None = None,
    night: str | None = None,
    version: str | None = None,
    settings: Settings | None = None,
) -> Worst:
    """Return the worst images of a score table.

    Anomalous ones come first, by p-value and then by score / threshold, since scores of two groups
    do not compare. Images without a verdict come last: each group's by score, in turns; that is
    logged.

    Args:
        scores: A score table, or a compacted one.
        count: How many, at the most.
        group: Of which group; of all if absent.
        night: Of which night: a value of the hive key that tells them (`dt`, `date`, `day` or
            `night`), or where there is none, the day of `scored_at`.
        version: Of the rows; the newest run's if absent.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table, version, group or night.
    """
    if count < 1:
        raise ConfigError(f"{count} images cannot be shown; name 1 or more")
    settings = settings or Settings()
    table = Folder.at(scores, settings.storage)
    try:
        version = version_of(table, version)
        choice = Choice("worst", count, group, night)
        images, seen = choose(open_table(table, version), choice, lambda rows: rows)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    if seen.without_verdict:
        some = sorted(seen.without_verdict)
        log.warning(
            "no verdicts in %s, as %s: their images come after all others, each group's by score "
            "and the groups in turns",
            *(counted(len(some), "groups"), listed(some[:_SHOWN])),
        )
    return Worst(version, images, seen.scored, seen.rows - seen.scored)


def require_out(out: str, scores: str, count: int, settings: Settings) -> None:
    """Refuse a file that `write` would refuse, before anything is read.

    Raises:
        ConfigError: if `out` is no name of a PNG file, or is within a version of SCORES, or a sheet
            has no room for so many images.
    """
    folder, name = split_uri(out, settings.storage)
    if not name.lower().endswith(".png"):
        raise ConfigError(f"{shown(out)} is not the name of a PNG file; end it with .png")
    inside = Folder.at(scores, settings.storage).path("version=")
    if folder.path(name).startswith(inside):
        raise ConfigError(
            f"{shown(out)} is among the rows of {shown(scores)}; name a file elsewhere"
        )
    if count > MOST:
        raise ConfigError(f"a contact sheet has room for {MOST} images, not {count}; name fewer")


def write(worst: Worst, scores: str, out: str, settings: Settings | None = None) -> str:
    """Write a contact sheet, in one put; return its full path.

    Each image is its photo, its heatmap where one was drawn, and a caption. Where the images cannot
    be opened any more there are heatmaps only.

    Args:
        worst: As `run` returns it; one image at least.
        scores: The same score table.
        out: Path or URI of a PNG file; what is there is replaced.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: as `require_out`, if there is no image, or storage refuses.
    """
    settings = settings or Settings()
    require_out(out, scores, len(worst.images), settings)
    if not worst.images:
        raise ConfigError(f"no image of {shown(scores)} has a score: there is nothing to show")
    try:
        table = Folder.at(scores, settings.storage)
        pictures = Pictures.of(table, worst.version, settings.storage)
        folder, name = split_uri(out, settings.storage)
        folder.write(name, contact_sheet(_tiles(worst.images, pictures)))
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    return folder.path(name)


def _tiles(images: list[ScoredImage], pictures: Pictures) -> list[Tile]:
    tiles = []
    for number, (image, photo) in enumerate(
        zip(images, pictures.photos_of(images, SIDE), strict=True), 1
    ):
        drawn = pictures.heatmap_of(image)
        tiles.append(
            Tile(
                photo.jpeg,
                None if drawn is None else decoded_apart(drawn),
                (f"{number}  {printable(image.image_id)}", _said(image)),
                printable(photo.error or ""),
                _shown(image),
            )
        )
    return tiles


def _shown(image: ScoredImage) -> tuple[int, int] | None:
    if not image.width or not image.height:
        return None
    high, wide = picture_size(image.width, image.height)
    return wide, high


def _said(image: ScoredImage) -> str:
    score = f"score {image.image_score:.4g}"
    if image.threshold is not None:
        score += f" / {image.threshold:.4g}"
    p_value = "" if image.p_value is None else f"   p {image.p_value:.2g}"
    return f"{printable(image.group)}   {score}{p_value}"
