"""compact: scores/ -> a second table of the same rows in fewer, larger, sorted files."""

from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import Terminal, say

# `pipeline.driver.compact.FILE_BYTES`, of which a usage error need not load the module.
_FILE_BYTES = 128 * 2**20


def compact(
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="A score table.")],
    target: Annotated[str, typer.Argument(metavar="DEST", help="Where the compacted table goes.")],
    file_bytes: Annotated[
        int, typer.Option(min=1, help="Size of a file of DEST; a file is held in memory.")
    ] = _FILE_BYTES,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Write the rows of SCORES into fewer, larger, sorted files of DEST.

    SCORES is only read. DEST then holds the rows that SCORES holds now; a rerun adds what is new,
    drops what has gone, and goes on after a kill. Heatmaps stay where they are, in SCORES.
    Of the settings only storage.* counts.
    """
    storage = options.read_settings(config, assignments, {}).storage
    from patchlake.pipeline.driver import compact as compacting
    from patchlake.pipeline.storage.folder import Folder

    written = compacting.run(scores, target, file_bytes, storage, Terminal())
    root = Folder.at(target).path("version=*")
    say(f"{len(written)} files written; {root}/**/*.parquet")
