"""drift: scores/ -> what each group's nights look like, and which of them drift."""

from typing import TYPE_CHECKING, Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, say_reading, show_table
from patchlake.pipeline.shown import printable

if TYPE_CHECKING:
    from patchlake.pipeline.driver.drift import DriftRow


def drift(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="A score table, or a compacted one.")
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT.parquet", help="Where the nights go; what is there is replaced."
        ),
    ] = None,
    night: Annotated[
        str | None,
        typer.Option(
            "--night",
            metavar="KEY",
            help="The column that tells nights; else dt, date, day or night, where there is one, "
            "or the day of scored_at.",
        ),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Say which nights of SCORES are not as the images that their model was trained on.

    Prints one row a group and night, those that drift first, and says in words what has changed.
    No image and no model is read. Of the settings storage.* counts.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import drift as drifting
    from patchlake.pipeline.driver.parts import require_out, write
    from patchlake.pipeline.storage.folder import Folder

    if out is not None:
        require_out(out, scores, settings)
    found = drifting.run(scores, None, settings, night)
    rows = drifting.rows_of(found)
    header = ["group", "night", "images", "unreadable", "median", "alarms", "drift", "p"]
    show_table(Folder.at(scores).root, header, [_cells(row) for row in rows])
    for row in rows:
        if row.is_drift:
            say(printable(row.words()))
    if out is not None:
        say(printable(write(found, out, settings, drifting.KEY)))


def _cells(row: "DriftRow") -> list[str]:
    rate = "" if row.alarm_rate is None else f"{row.alarm_rate:.1%}"
    says = {True: "yes", False: "no", None: "not tested"}[row.is_drift]
    return [
        *(row.group, row.night, str(row.images), str(row.unreadable)),
        "" if row.q50 is None else f"{row.q50:.4g}",
        *(rate, says, "" if row.p_value is None else f"{row.p_value:.2g}"),
    ]
