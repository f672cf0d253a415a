"""mutual: images/ -> model/ and scores/, without labels or a fit beforehand."""

from functools import partial
from typing import Annotated, Literal

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say_reading
from patchlake.jobs.results import and_show, show_preview, show_scored


def mutual(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Made of IMAGES; of an earlier night, IMAGES join what it has."
        ),
    ],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Where the score table goes.")],
    backbone: Annotated[
        str | None, typer.Option(help="lite0, lite1, lite2 or a timm tag; sets backbone.name.")
    ] = None,
    weights: options.Weights = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings of the paper: musc_paper; sets preset.")
    ] = None,
    group: options.OneGroup = None,
    where: options.Where = None,
    heatmaps: Annotated[
        Literal["all", "anomalous", "none"] | None, typer.Option(help="Sets score.heatmaps.")
    ] = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Compare images of IMAGES with one another, and score each; no label is read.

    It takes five images of a group at least, most of them good. MODEL is an ordinary model, by
    which `score` compares other images with these.
    """
    flags = {
        "backbone.name": backbone,
        "backbone.weights": weights,
        "preset": preset,
        "columns.one_group": group,
        "score.heatmaps": heatmaps,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    options.require_dry_run(as_json=as_json, dry_run=dry_run)
    say_reading(images)
    from patchlake.pipeline.driver import mutual as comparing

    asked = (images, model, scores, settings, options.execution(runner, address))
    if dry_run:
        show_preview(comparing.preview(*asked, where), as_json=as_json)
        return
    and_show(partial(comparing.run, *asked, where=where), partial(show_scored, scores, settings))
