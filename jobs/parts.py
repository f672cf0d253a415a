"""parts: scores/ -> one verdict a piece, from all its views and nights."""

from typing import TYPE_CHECKING, Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, say_reading, show_table
from patchlake.pipeline.shown import printable

if TYPE_CHECKING:
    import pyarrow as pa


def parts(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="A score table, or a compacted one.")
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT.parquet", help="Where the parts go; what is there is replaced."
        ),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Give one verdict for each part_id of SCORES, from all its images.

    A part is anomalous if the smallest p_value of its images is at most
    verdict.false_alarm_rate divided by their number (Bonferroni). Prints how many there are of each
    group. Of the settings storage.* counts, and verdict.false_alarm_rate where it is given; else it
    is that of the newest run.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import parts as judging
    from patchlake.pipeline.storage.folder import Folder

    if out is not None:
        judging.require_out(out, scores, settings)
    found = judging.run(scores, None, settings)
    header = ["group", "parts", "images", "anomalous", "no verdict"]
    show_table(Folder.at(scores).root, header, _counted(found))
    if out is not None:
        say(printable(judging.write(found, out, settings)))


def _counted(found: "pa.Table") -> list[list[str]]:
    """Return, of each group, its name, parts, images, anomalous parts and those without verdict."""
    import pyarrow.compute as pc

    verdict = found.column("is_anomalous")
    is_anomalous, has_none = pc.fill_null(verdict, False), verdict.is_null()
    counted = (
        found.append_column("anomalous", is_anomalous.cast("int64"))
        .append_column("none", has_none.cast("int64"))
        .group_by("group", use_threads=False)
        .aggregate([("part_id", "count"), ("images", "sum"), ("anomalous", "sum"), ("none", "sum")])
    )
    return [[str(cell) for cell in row.values()] for row in counted.to_pylist()]
