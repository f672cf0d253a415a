"""ingest: folders, archives' contents, tables of URIs -> images/ (Parquet)."""

from collections.abc import Sequence
from typing import Annotated

import typer

from jobs import options
from jobs.console import log, progress, say
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder, split_uri
from pipeline.lake.listing import list_tables
from pipeline.lake.roles import Use
from pipeline.lake.sources import MANIFESTS, Layout, SourceImage, guess_layout, list_images, shards
from pipeline.stages.pack import FILE_BYTES, Pack, known_sources, to_packs
from pipeline.stages.preflight import Preflight

_SHOWN = 10


def ingest(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, or CSV/Parquet of URIs.")
    ],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder or URI of the images table.")
    ],
    layout: Annotated[
        Layout | None, typer.Option(help="How SOURCE is laid out; guessed if absent.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Product or station of all images.")] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "ray",
    address: options.Address = None,
) -> None:
    """Pack image files into Parquet. What was ingested before is skipped."""
    settings = options.read_settings(config, assignments, {})
    run(source, images, layout, group, settings, options.Execution(runner, address))


def run(
    source: str,
    images: str,
    layout: Layout | None,
    group: str | None,
    settings: Settings,
    execution: options.Execution,
) -> int:
    """Ingest; return the number of images written."""
    storage = settings.storage
    target = Folder.at(images, storage)
    # A manifest is one file, in a folder that need not be ours to list.
    named = [split_uri(source, storage)] if source.endswith(MANIFESTS) else []
    read = [] if named else [Folder.at(source, storage)]
    preflight = Preflight(read, [target], named, [Use(target, "images", is_written=True)])
    preflight.here()
    target.sweep()
    chosen = layout or guess_layout(source, storage)
    listing = list_images(source, chosen, group, settings.image.uri_prefixes, storage)
    known = known_sources(target, _existing(target))
    fresh = [image for image in listing.images if (image.uri, image.version) not in known]
    log.info(
        "%s: %d files in layout '%s', %d of them known",
        source,
        len(listing.images),
        chosen,
        len(listing.images) - len(fresh),
    )
    cut = list(shards(fresh, FILE_BYTES))
    written, skipped = 0, list(listing.skipped)
    # Packing is reading and writing: it is worth a Ray only where there are files to share out.
    shared = execution if len(cut) > 1 else options.Execution("local", None)
    with (
        shared.start(settings.workers, preflight) as runner,
        progress("ingest", len(fresh), "files") as advance,
    ):
        for result in runner.map(to_packs(cut), Pack(target, settings.fragment_images)):
            row = result.to_pylist()[0]
            written += row["images"]
            skipped += row["skipped"]
            advance(row["images"] + len(row["skipped"]))
    _report(target, fresh, written, skipped)
    return written


def _existing(target: Folder) -> list[str]:
    try:
        return [entry.name for entry in list_tables(target)]
    except ConfigError:
        return []


def _report(
    target: Folder, fresh: Sequence[SourceImage], written: int, skipped: Sequence[str]
) -> None:
    for line in skipped[:_SHOWN]:
        log.warning("skipped %s", line)
    if len(skipped) > _SHOWN:
        log.warning("... and %d more", len(skipped) - _SHOWN)
    ids = [image.image_id for image in fresh]
    repeated = len(ids) - len(set(ids))
    if repeated:
        log.warning("%d image_ids occur more than once; rows are told apart by file", repeated)
    say(f"ingested {written} images into {target.root}; {len(skipped)} files are no images")
