"""The `patchlake` command. Results on stdout, everything else on stderr; exit codes in `errors`."""

import sys

import typer

from jobs import compact, demo, evaluate, fit, ingest, score, status, withdraw
from jobs.console import log, set_up_logging
from pipeline.errors import InputChanged, PatchlakeError, StorageError

app = typer.Typer(
    name="patchlake",
    help="Find defects in images at the scale of a data lake. "
    "Exit codes: 0 done, 1 unexpected error, 2 wrong usage or config, "
    "3 done but fragments failed or too many error rows, 4 stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
VERBS = (
    ingest.ingest,
    fit.fit,
    withdraw.withdraw,
    score.score,
    evaluate.evaluate,
    compact.compact,
    status.status,
    demo.demo,
)
for verb in VERBS:
    app.command()(verb)


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
