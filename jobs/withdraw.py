"""withdraw: images leave a model, by id."""

from functools import partial
from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say_reading
from patchlake.jobs.results import and_show, show_model


def withdraw(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    image: Annotated[
        list[str], typer.Option("--image", metavar="ID", help="image_id; may be repeated.")
    ],
    group: Annotated[
        str | None, typer.Option(help="Where more than one group has such an image.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="The images table, if it has moved. Only PaDiM and Mahalanobis AD read it.",
        ),
    ] = None,
    weights: options.Weights = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Take images out of a model, without fitting it again."""
    flags = options.nested({"backbone.weights": weights})
    settings = options.read_settings(config, assignments, flags)
    say_reading(model)
    from patchlake.pipeline.driver import withdraw as withdrawing
    from patchlake.pipeline.storage.folder import Folder

    leaving = withdrawing.Withdrawal(tuple(image), group, images)
    execution = options.execution(runner, address)
    root = Folder.at(model, settings.storage).root
    run = partial(withdrawing.run, model, leaving, settings, execution)
    and_show(run, partial(show_model, root))
