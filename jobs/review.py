"""review: scores/ -> a person's decisions, on a page or out of a file."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patchlake.jobs import options
from patchlake.jobs.console import log, say, say_reading, show_table
from patchlake.pipeline.shown import counted, printable

if TYPE_CHECKING:
    from patchlake.pipeline.driver.desk import Reviewed

# `pipeline.score_table.ranking.RowOrder`, of which a usage error need not load the module.
_Order = Literal["worst", "near", "random"]


def review(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="A score table, or a compacted one.")
    ],
    reviews: Annotated[
        str, typer.Argument(metavar="REVIEWS", help="Where decisions go; it need not exist yet.")
    ],
    order: Annotated[
        _Order,
        typer.Option(
            "--order",
            help="worst: the most anomalous first; near: the nearest to the threshold first; "
            "random: a random sample, the same one for every reviewer.",
        ),
    ] = "worst",
    count: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 100,
    group: options.OfGroup = None,
    night: options.OfNight = None,
    reviewer: Annotated[
        str | None,
        typer.Option("--reviewer", metavar="NAME", help="Who decides; else the login name."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also images that this reviewer has decided on before.")
    ] = False,
    given: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="No page: take the decisions of a CSV or Parquet file with columns image_id and "
            "verdict.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the page; 0: any that is free.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON at the end.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Decide on images of SCORES, on a page in the browser; decisions go to REVIEWS.

    The page is served to this machine alone, and to who has the link that is printed. Each decision
    is written at once; Ctrl-C ends the session. SCORES is only read. Of the settings only storage.*
    counts, and seed for --order random.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import review as reviewing
    from patchlake.pipeline.driver.chosen import Choice

    if given is not None:
        found = reviewing.take(scores, reviews, given, reviewer, settings)
    else:
        choice = Choice(order, count, group, night, settings.seed)
        asked = reviewing.Asked(choice, reviewer, again, port)
        found = reviewing.run(scores, reviews, asked, settings, _say_link)
    _show(found, as_json=as_json)


def _say_link(link: str) -> None:
    log.info("open this page; Ctrl-C ends the session: %s", link)


def _show(found: "Reviewed", *, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        say(json.dumps(asdict(found), indent=1))
        return
    rows = [
        ["defective", str(found.defective)],
        ["good", str(found.good)],
        ["unsure", str(found.unsure)],
        ["not decided", str(found.left)],
    ]
    title = f"{counted(found.decisions, 'decisions')} of {printable(found.reviewer)}"
    show_table(title, ["verdict", "images"], rows)
    say(printable(found.reviews))
