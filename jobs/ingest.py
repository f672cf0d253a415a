"""ingest: folders, archives' contents, tables of URIs -> images/ (Parquet)."""

from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, show_table
from patchlake.pipeline.sources.sources import Layout

# Kinds of images that have a line each.
_KINDS = 20


def ingest(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, or CSV/Parquet of URIs.")
    ],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder or URI of the images table.")
    ],
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="mvtec: folders say split and label; folder: images without labels; csv: a "
            "manifest. Told by the names if absent."
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="Product or station of all images.")] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Pack image files into Parquet. A second ingest brings what is new or has changed."""
    settings = options.read_settings(config, assignments, {})
    from patchlake.pipeline.driver import ingest as ingesting

    execution = options.execution(runner, address)
    done = ingesting.run(source, images, layout, group, settings, execution)
    if len(done.kinds) <= _KINDS:
        rows = [[*kind[:3], *map(str, kind[3:])] for kind in done.kinds]
        show_table("what SOURCE holds", ["group", "split", "label", "images", "masks"], rows)
    say(f"ingested {done.images} images into {done.root}; {len(done.skipped)} files are no images")
