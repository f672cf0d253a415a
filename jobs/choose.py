"""choose: images/ of good parts -> which settings of the inputs find synthetic defects best."""

from typing import TYPE_CHECKING, Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, say_reading, show_table
from patchlake.pipeline.shown import printable

if TYPE_CHECKING:
    from patchlake.pipeline.driver.choose import Trial


def choose(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT.yaml",
            help="Where the recommended settings go; what is there is replaced.",
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option("--repeat", min=1, max=20, help="Draw held-out parts and defects so often."),
    ] = 2,
    backbone: Annotated[
        str | None, typer.Option(help="lite0, lite1, lite2 or a timm tag; sets backbone.name.")
    ] = None,
    weights: options.Weights = None,
    group: options.OneGroup = None,
    where: options.Where = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "local",
    address: options.Address = None,
) -> None:
    """Compare sizes of the model's input by synthetic defects on good photos, and recommend one.

    Prints a row for each candidate: what it finds, and images a second of a core. Only good photos
    are read. Whether real defects are found as synthetic ones are, nobody can say beforehand.
    """
    flags = {
        "backbone.name": backbone,
        "backbone.weights": weights,
        "columns.one_group": group,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    say_reading(images)
    from patchlake.pipeline.driver import choose as choosing
    from patchlake.pipeline.storage.folder import Folder

    if out is not None:
        choosing.require_out(out, settings)
    found = choosing.run(
        *(images, settings, options.execution(runner, address)),
        where=where,
        seeds=range(settings.seed, settings.seed + repeat),
    )
    header = ["inputs", "pixels", "image AUROC", "pixel AUROC", "AUPRO", "mean", "images/s"]
    rows = [_cells(one) for one in found.trials]
    show_table(Folder.at(images, settings.storage).root, header, rows)
    say(printable(found.words()))
    if out is None:
        say(found.settings().rstrip())
    else:
        say(printable(choosing.write(found, out, settings)))


def _cells(trial: "Trial") -> list[str]:
    height, width = trial.inputs
    metrics = (trial.image_auroc, trial.pixel_auroc, trial.aupro, trial.merit)
    told = ["" if value != value else f"{value:.3f}" for value in metrics]  # noqa: PLR0124 - NaN
    return [trial.name, f"{width} x {height}", *told, f"{1 / trial.seconds_per_image:.1f}"]
