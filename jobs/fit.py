"""fit: images/ of good parts -> model/."""

from functools import partial
from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say_reading
from patchlake.jobs.results import and_show, show_model, show_preview
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.methods import names
from patchlake.pipeline.presets import PRESETS


def fit(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Where the model goes.")],
    method: Annotated[
        str | None, typer.Option(help=f"Sets method.name: {', '.join(names())}.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="lite0, lite1, lite2 or a timm tag; sets backbone.name.")
    ] = None,
    weights: options.Weights = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Settings of a paper: {', '.join(PRESETS)}.")
    ] = None,
    group: options.OneGroup = None,
    where: options.Where = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a different model.")
    ] = False,
    robust: Annotated[
        bool,
        typer.Option(
            "--robust", help="Leave out training images that look anomalous; sets robust."
        ),
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    update: Annotated[
        bool,
        typer.Option("--update", help="Add new good images to the model; it is not fitted again."),
    ] = False,
    reviews: Annotated[
        str | None,
        typer.Option(
            metavar="REVIEWS",
            help="With --update: add the false alarms that a reviews table or CSV confirms, and "
            "withdraw images that proved defective.",
        ),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Fit one model per group on its known-good images."""
    flags = {
        "method.name": method,
        "backbone.name": backbone,
        "backbone.weights": weights,
        "columns.one_group": group,
        "preset": preset,
        "robust": robust or None,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    options.require_dry_run(as_json=as_json, dry_run=dry_run)
    combined = {"--overwrite": overwrite, "--dry-run": dry_run, "--robust": robust}
    other = next((flag for flag, is_set in combined.items() if is_set), None)
    if update and other:
        raise ConfigError(f"--update cannot be combined with {other}: name one")
    if reviews is not None and not update:
        raise ConfigError("--reviews is for a model that is there: name --update as well")
    say_reading(images)
    from patchlake.pipeline.driver import fit as fitting
    from patchlake.pipeline.driver import learning
    from patchlake.pipeline.driver import update as updating
    from patchlake.pipeline.storage.folder import Folder

    execution = options.execution(runner, address)
    if dry_run:
        found = fitting.preview(images, model, settings, execution, where, overwrite=overwrite)
        show_preview(found, as_json=as_json)
        return
    named = (images, model)
    run = partial(updating.run if update else partial(fitting.run, overwrite=overwrite), *named)
    if reviews is not None:
        run = partial(learning.run, *named, reviews)
    root = Folder.at(model, settings.storage).root
    and_show(partial(run, settings, execution, where=where), partial(show_model, root))
