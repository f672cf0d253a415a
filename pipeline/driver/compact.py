"""compact: scores/ -> a second table of the same rows in fewer, larger, sorted files."""

import logging

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.driver.observer import Observer, Silent
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.trained import copy_lists
from patchlake.pipeline.score_table import compaction, parts
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use

log = logging.getLogger(__name__)

# Of a file of the compacted table, which is held in memory when it is written.
FILE_BYTES = 128 * 2**20


def run(
    scores: str,
    target: str,
    file_bytes: int = FILE_BYTES,
    storage: StorageSettings | None = None,
    observer: Observer | None = None,
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
        with (observer or Silent()).task("compact", len(changed), "files") as advance:
            for file in changed:
                compaction.build(source, table, file)
                advance(1)
        compaction.commit(table, after)
        compaction.settle(table)
    compaction.clear(table)
    # What nights are compared with (`drift`).
    copy_lists(source, table)
    return [file.name for file in changed]
