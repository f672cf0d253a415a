"""Entry of `patchlake`: takes the signals, and imports the rest."""

import signal


def main() -> None:
    """Run the command line, and end the process."""
    # They wait until somebody waits for them: from here on none ends the process with a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    from patchlake.pipeline import stopping

    stopping.run(_run)


def _run() -> int:
    """Return the exit code."""
    # Imported here: all of it comes after the signals are taken.
    from patchlake.jobs import cli
    from patchlake.pipeline import stopping
    from patchlake.pipeline.storage.disk import remove_unfinished

    stopping.working()
    try:
        with stopping.abruptly(remove_unfinished):
            cli.main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


if __name__ == "__main__":
    main()
