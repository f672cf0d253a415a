"""worst: scores/ -> the worst images, as a table and a contact sheet."""

from typing import TYPE_CHECKING, Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, say_reading, show_table
from patchlake.pipeline.shown import counted, printable

if TYPE_CHECKING:
    from patchlake.jobs.console import Cell
    from patchlake.pipeline.score_table.scored import ScoredImage


def worst(
    scores: Annotated[
        str, typer.Argument(metavar="SCORES", help="A score table, or a compacted one.")
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT.png",
            help="Where a contact sheet goes; what is there is replaced.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 20,
    group: options.OfGroup = None,
    night: options.OfNight = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Show the worst images of SCORES, and draw them on one sheet.

    Anomalous ones come first, by p-value and then by score / threshold, as scores of two groups do
    not compare; images without a verdict come last, each group's by score. OUT.png has the photo
    and the heatmap of each. Of the settings only storage.* counts.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import worst as looking

    if out is not None:
        looking.require_out(out, scores, count, settings)
    found = looking.run(scores, count, group=group, night=night, settings=settings)
    sheet = None if out is None else looking.write(found, scores, out, settings)
    if as_json:
        from pydantic import TypeAdapter

        told = {"sheet": sheet, **TypeAdapter(looking.Worst).dump_python(found, mode="json")}
        say(TypeAdapter(dict[str, object]).dump_json(told, indent=1).decode())
        return
    header = ["image,\nheatmap", "group", "night", "score,\nthreshold", "p-value", "regions"]
    show_table(
        f"{counted(len(found.images), 'images')} of {found.scored} with a score",
        *(header, [_cells(image) for image in found.images]),
    )
    if found.without_score:
        say(f"{counted(found.without_score, 'images')} without a score are not among them")
    if sheet is not None:
        say(printable(sheet))


def _cells(image: "ScoredImage") -> list["Cell"]:
    threshold = [] if image.threshold is None else [f"{image.threshold:.4g}"]
    score = (f"{image.image_score:.4g}", *threshold)
    named = (image.image_id, *([image.heatmap_path] if image.heatmap_path else []))
    p_value = "" if image.p_value is None else f"{image.p_value:.2g}"
    regions = "" if image.regions is None else str(len(image.regions))
    return [named, image.group, image.night, score, p_value, regions]
