"""picture: one heatmap of a score table -> a file."""

from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say
from patchlake.pipeline.shown import printable


def picture(
    path: Annotated[
        str,
        typer.Argument(
            metavar="HEATMAP_PATH",
            help="SCORES, a slash, and the heatmap_path of a row: SCORES/_heatmaps/KEY/ROW.jpg, or "
            "SCORES/_heatmaps/KEY.zip#ROW.jpg (in quotes, for the shell).",
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT.jpg", help="Where it goes; what is there is replaced.")
    ],
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Write one heatmap of a score table to a file of its own.

    It is read from where score.heatmap_store has put it, which its path says. Of the settings only
    storage.* counts.
    """
    storage = options.read_settings(config, assignments, {}).storage
    from patchlake.pipeline.driver import picture as pictures

    say(printable(pictures.copy(path, out, storage)))
