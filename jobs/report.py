"""report: scores/ -> one page of HTML that people look at."""

from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import log, say, say_reading
from patchlake.pipeline.shown import printable


def report(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="A score table, or a compacted one.")
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT.html", help="The page; what is there is replaced.")
    ],
    night: Annotated[
        str | None,
        typer.Option("--night", metavar="NIGHT", help="The night that it is of; else the last."),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Write one page of SCORES to look at: what happened, the worst images, charts and facts.

    It is one file of HTML under 10 MB that needs no network. Of the settings only storage.* counts.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import report as reporting

    written = reporting.run(scores, out, night=night, settings=settings)
    log.info(
        "a page of %d images, night %s, %.1f MB",
        *(written.images, printable(written.night), written.bytes / 1e6),
    )
    say(printable(written.path))
