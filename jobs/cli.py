"""The `patchlake` command. Results on stdout, everything else on stderr; exit codes in `errors`."""

import importlib
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from patchlake.jobs.console import log, set_up_logging
from patchlake.pipeline.errors import InputChanged, PatchlakeError, StorageError

# The module of each verb, which has a function of its name, and what `--help` says of it: the first
# sentence of that function. The first five are in the order of use.
VERBS = {
    "ingest": "Pack image files into Parquet.",
    "fit": "Fit one model per group on its known-good images.",
    "score": "Score every image once.",
    "status": "Show what is done, failed and pending, and of a model, images that it should not "
    "have.",
    "evaluate": "Print image AUROC, pixel AUROC and AUPRO of the labelled images that are not for "
    "training.",
    "mutual": "Compare images of IMAGES with one another, and score each; no label is read.",
    "choose": "Compare sizes of the model's input by synthetic defects on good photos, and "
    "recommend one.",
    "withdraw": "Take images out of a model, without fitting it again.",
    "compact": "Write the rows of SCORES into fewer, larger, sorted files of DEST.",
    "parts": "Give one verdict for each part_id of SCORES, from all its images.",
    "report": "Write one page of SCORES to look at: what happened, the worst images, charts and "
    "facts.",
    "drift": "Say which nights of SCORES are not as the images that their model was trained on.",
    "worst": "Show the worst images of SCORES, and draw them on one sheet.",
    "review": "Decide on images of SCORES, on a page in the browser; decisions go to REVIEWS.",
    "picture": "Write one heatmap of a score table to a file of its own.",
    "demo": "Make synthetic product images, then ingest, fit, score, evaluate and report on them.",
}
_IN_ORDER = 5


class _Verbs(TyperGroup):
    """Imports the verb that is run, and no other: together they take seconds."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's own
        name, _, rest = super().resolve_command(ctx, args)
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        one.command(name)(getattr(importlib.import_module(f"patchlake.jobs.{name}"), str(name)))
        return name, typer.main.get_command(one), rest


app = typer.Typer(
    cls=_Verbs,
    name="patchlake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchlake {version('patchlake')}")
        raise typer.Exit


@app.callback(
    help="Find defects in images at the scale of a data lake. "
    "Exit codes: 0 done, 1 unexpected error, 2 wrong usage or config, "
    "3 done but fragments failed or too many error rows, 4 stopped."
)
def _patchlake(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print it.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


def _shown_only() -> None:
    """Stand for a verb where it is only listed."""


for number, (verb, line) in enumerate(VERBS.items()):
    panel = "In the order of use" if number < _IN_ORDER else "Besides"
    app.command(verb, help=line, rich_help_panel=panel)(_shown_only)


def main() -> None:
    """Run the command line; exit with the code of what happened."""
    set_up_logging()
    try:
        app()
    except PatchlakeError as error:
        # One clear message; a traceback is for faults of the program.
        log.error("%s", error)
        sys.exit(error.exit_code)
    except InputChanged as error:
        log.error("%s", error)
        sys.exit(PatchlakeError.exit_code)
    except StorageError as error:
        log.error("%s; what is committed stays, the same command goes on from there", error)
        sys.exit(error.exit_code)
