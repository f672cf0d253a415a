"""Entry of `patchlake`: takes the signals, chooses the BLAS kernel, and imports the rest."""

import sys

from jobs import stopping


def main() -> None:
    """Run the command line, and end the process."""
    stopping.begin()
    try:
        try:
            code = _run()
        finally:
            stopping.ending()
    except BaseException:  # noqa: BLE001 - the last place that can tell
        # Whatever a stop has become on its way up, it is told as what it is.
        if stopping.reason() is None:
            sys.excepthook(*sys.exc_info())
        code = 1
    stopping.leave(code)


def _run() -> int:
    """Return the exit code."""
    # Imported here: numpy must come after the choice, and all of it after the signals are taken.
    from jobs.blas import choose_kernel

    choose_kernel()
    from jobs import cli
    from pipeline.lake.disk import remove_unfinished

    stopping.working(remove_unfinished)
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


if __name__ == "__main__":
    main()
