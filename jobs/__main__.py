"""Entry of the `patchlake` command: chooses the BLAS kernel, then imports the rest."""

from jobs.blas import choose_kernel


def main() -> None:
    """Run the command line."""
    choose_kernel()
    # Imported here: numpy must come after the choice.
    from jobs import cli

    cli.main()


if __name__ == "__main__":
    main()
