"""report: scores/ -> one page of HTML that people look at."""

import logging
from dataclasses import dataclass

from patchlake.pipeline.config import Settings, StorageSettings
from patchlake.pipeline.driver import drift
from patchlake.pipeline.driver.dataset import open_table, version_of
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.images.geometry import geometry_of
from patchlake.pipeline.lake.photos import Photos
from patchlake.pipeline.record import runs
from patchlake.pipeline.report import page
from patchlake.pipeline.report.chosen import read_shown
from patchlake.pipeline.report.contents import GROUPS, Contents, details
from patchlake.pipeline.report.facts import Facts, read_facts
from patchlake.pipeline.report.headline import short
from patchlake.pipeline.report.maps import Maps
from patchlake.pipeline.report.overview import Drift, Moved, Overview
from patchlake.pipeline.report.pictures import Gallery
from patchlake.pipeline.report.pools import Row
from patchlake.pipeline.report.tally import Tally, read_tally
from patchlake.pipeline.score_table.nights import night_key
from patchlake.pipeline.score_table.parts import source_of
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import Folder, split_uri

log = logging.getLogger(__name__)

# Pictures of other nights than that of the page.
_EARLIER_WORST, _EARLIER_MISSES = 24, 6
_ERRORS = 60
# Groups and nights that are tested for drift: of each up to 1,024 images are held, with embeddings.
_TESTED = 2_000


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    path: str
    bytes: int
    # Rows of the score table that it counts.
    images: int
    night: str


def run(
    scores: str,
    out: str,
    *,
    version: str | None = None,
    night: str | None = None,
    settings: Settings | None = None,
) -> Report:
    """Write the page of a score table, or of a compacted one, in one atomic put.

    Reads a dozen narrow columns of all rows, of 16 files at a time, and pictures only of what is
    shown. Memory does not grow with the images, but with the groups and nights.

    Args:
        scores: The score table.
        out: Path or URI of the page; what is there is replaced.
        version: Which rows; the newest run's if absent.
        night: The night that the page is of; the last one if absent.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table, version or night, the record of a run is damaged,
            or `out` is no name of a page.
    """
    storage = (settings or Settings()).storage
    table = Folder.at(scores, storage)
    try:
        folder, name = _place_of(out, table, storage)
        version = version_of(table, version)
        contents = _contents(table, version, night, storage)
        content = page.rendered(contents)
        folder.write(name, content)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    overview = contents.overview
    images = sum(cell.images for cell in overview.tally.cells.values())
    return Report(folder.path(name), len(content), images, overview.night)


def _contents(table: Folder, version: str, night: str | None, storage: StorageSettings) -> Contents:
    home = _home(table, storage)
    facts = read_facts(table, version, runs.read_records(home), storage)
    dataset = open_table(table, version)
    column = night_key(dataset.schema.names)
    tally, files = read_tally(dataset, column)
    if not tally.cells:
        raise ConfigError(f"version '{version}' of {table.root} has no row, and so no report")
    if night is not None and night not in tally.nights:
        raise ConfigError(
            f"{table.root} has no night {shown(night)} (column {column}); its last one is "
            f"{shown(max(tally.nights))}"
        )
    overview = Overview.of(tally, _drift(table, version, tally, storage), facts.rate, night)
    chosen = _Chosen.of(tally, overview.night)
    pictured = [*chosen.worst, *chosen.misses]
    images = read_shown(dataset, column, [*pictured, *chosen.errors], files)
    without = _without_regions(overview)
    mapped = [
        row
        for row, image in zip(pictured, images, strict=False)
        if image.heatmap_path is None or row.group in without
    ]
    maps = Maps.read(dataset, mapped, files, _drawn_with(facts))
    gallery = Gallery(home, Photos.of(table, storage, version), maps, storage)
    seen = gallery.read(images[: len(pictured)])
    peaks = maps.peaks([row for row in mapped if row.group in without])
    return Contents(
        overview=overview,
        facts=facts,
        worst=seen[: len(chosen.worst)],
        misses=seen[len(chosen.worst) :],
        errors=images[len(pictured) :],
        details=details(overview, facts, peaks),
    )


@dataclass(frozen=True)
class _Chosen:
    """The rows that are shown, those of the page's night first."""

    worst: list[Row]
    misses: list[Row]
    errors: list[Row]

    @classmethod
    def of(cls, tally: Tally, night: str) -> "_Chosen":
        place = tally.nights[night]
        errors = tally.errors.of_night(place)
        return cls(
            [*tally.worst.of_night(place), *tally.worst.of_others(place, _EARLIER_WORST)],
            [*tally.misses.of_night(place), *tally.misses.of_others(place, _EARLIER_MISSES)],
            [*errors, *tally.errors.of_others(place, _ERRORS - len(errors))][:_ERRORS],
        )


def _without_regions(overview: Overview) -> set[int]:
    """Return the groups with charts of which no region is known."""
    tally = overview.tally
    places = [tally.groups[group] for group in overview.groups[:GROUPS]]
    return {place for place in places if not tally.spots_of(place).any()}


def _drawn_with(facts: Facts) -> Maps:
    """Return what maps are drawn with, without a map."""
    newest = facts.newest
    image = (newest.settings if newest else Settings()).image
    shapes = newest.shapes if newest else {}
    return Maps(geometry_of(image.resize, image.crop, shapes), facts.models)


def _drift(table: Folder, version: str, tally: Tally, storage: StorageSettings) -> Drift:
    """Return what `patchlake drift` says of each group and night; nothing of too many to test."""
    if not any(True for _ in table.names("_models")):
        # Nothing is kept to compare nights with.
        return {}
    if len(tally.cells) > _TESTED:
        log.warning(
            "%d groups and nights are too many to test for drift here; `patchlake drift` does it",
            len(tally.cells),
        )
        return {}
    try:
        # What nights are is told alike, so that rows meet.
        rows = drift.run(table.root, version, Settings(storage=storage)).to_pylist()
    except (ConfigError, OSError) as error:
        log.warning("nothing is said of drift: %s", short(str(error), 300))
        return {}
    return {
        (row["group"], row["night"]): Moved(row["shift"], row["p_value"], row["is_drift"])
        for row in rows
        if row["p_value"] is not None
    }


def _home(table: Folder, storage: StorageSettings) -> Folder:
    """Return the score table that has the runs and heatmaps: of a compacted one, the other one."""
    if table.folders("_runs"):
        return table
    root = source_of(table)
    if root is None:
        return table
    source = Folder.at(root, storage)
    return source if source_of(source) is not None else table


def _place_of(out: str, table: Folder, storage: StorageSettings) -> tuple[Folder, str]:
    folder, name = split_uri(out, storage)
    if not name.lower().endswith((".html", ".htm")):
        raise ConfigError(f"{shown(out)} is not the name of a page; end it with .html")
    if folder.path(name).startswith(table.path("version=")):
        raise ConfigError(f"{shown(out)} is among the rows of {table.root}; name a file elsewhere")
    return folder, name
