"""compact: scores/ -> a second table of the same rows in fewer, larger, sorted files."""

from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import log, progress, say
from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table import compaction, parts
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use

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
    written = run(scores, target, file_bytes, storage)
    say(f"{len(written)} files written; {Folder.at(target).path('version=*')}/**/*.parquet")


def run(
    scores: str,
    target: str,
    file_bytes: int = _FILE_BYTES,
    storage: StorageSettings | None = None,
) -> list[str]:
    """Bring the compacted table up to date; return the names of the files that are new or changed.

    Raises:
        ConfigError: if SCORES has no part, or DEST is of another score table.
    """
    storage = storage or StorageSettings()
    source, table = Folder.at(scores, storage), Folder.at(target, storage)
    roles = [Use(source, "scores"), Use(table, "compacted", is_written=True)]
    Preflight([source], [table], roles=roles).here()
    table.sweep()
    found = parts.every_part(source)
    if not found and not table.exists("_source.json"):
        raise ConfigError(f"{source.root} holds no part of a score table")
    parts.bind_source(table, source)
    compaction.settle(table)
    before = compaction.read(table)
    after = compaction.plan(before, found, file_bytes)
    changed = compaction.rewritten(before, after)
    if after.number != before.number:
        log.info(
            "compact of %s: %d parts, %d files to write", source.root, len(found), len(changed)
        )
        with progress("compact", len(changed), "files") as advance:
            for file in changed:
                compaction.build(source, table, file)
                advance(1)
        compaction.commit(table, after)
        compaction.settle(table)
    compaction.clear(table)
    return [file.name for file in changed]
