"""ingest: folders, archives' contents, tables of URIs -> images/ (Parquet)."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, show_table
from patchlake.pipeline.sources.sources import Arrangement, Layout

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
    partitions: Annotated[
        list[str] | None,
        typer.Option(
            "--partition",
            metavar="KEY",
            help="A hive key of the files that are written, from a column of that name in the "
            "manifest or folders KEY=VALUE; dt also from captured_at. May repeat.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Pack image files into Parquet. A second ingest brings what is new or has changed."""
    settings = options.read_settings(config, assignments, {})
    from patchlake.pipeline.driver import ingest as ingesting

    execution = options.execution(runner, address)
    arrangement = Arrangement(layout, group, tuple(partitions or ()))
    done = ingesting.run(source, images, arrangement, settings, execution)
    if as_json:
        say(json.dumps(asdict(done), indent=1))
        return
    if len(done.kinds) <= _KINDS:
        rows = [[*kind[:3], *map(str, kind[3:])] for kind in done.kinds]
        show_table("what SOURCE holds", ["group", "split", "label", "images", "masks"], rows)
    left_out = ", ".join(f"{count} {why}" for why, count in sorted(done.left_out.items()))
    say(f"ingested {done.images} images into {done.root}; left out: {left_out or 'none'}")
