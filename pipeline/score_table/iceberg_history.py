"""Which parts an Iceberg table holds rows of, once another engine has rewritten its files.

Then the files of the current snapshot do not tell, but the history does: what a snapshot added
that has our name in its summary was published, and is until one of ours takes it out again. What
others did to a file since then is no reason to add its rows a second time.
"""

from typing import TYPE_CHECKING

from patchlake.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

# In the summary of our snapshots; its value names the run.
OURS = "patchlake.run"
# Sequence number of a table's first snapshot.
_FIRST = 1
_AGAIN = "drop the table, not its files, and the same command makes it anew from the parts"


def published(table: "Table", name: str) -> set[str]:
    """Return the paths of the parts that were published, and not taken out by us again.

    Reads the manifests of all snapshots of ours.

    Raises:
        ConfigError: if snapshots have been expired, or none is ours: it cannot be known.
    """
    from pyiceberg.manifest import ManifestEntryStatus

    held: set[str] = set()
    ours = [s for s in _oldest_first(table, name) if _is_ours(s)]
    for snapshot in ours:
        for manifest in snapshot.manifests(table.io):
            if manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                if entry.status == ManifestEntryStatus.ADDED:
                    held.add(entry.data_file.file_path)
                elif entry.status == ManifestEntryStatus.DELETED:
                    held.discard(entry.data_file.file_path)
    if not held:
        raise ConfigError(
            f"Iceberg table {name} holds files that are not parts, and patchlake has published "
            "none in it: their rows might be added twice; use another table"
        )
    return held


def require_removable(lost: set[str], name: str) -> None:
    """Raise `ConfigError` where parts leave whose rows are in another engine's files by now."""
    if lost:
        raise ConfigError(
            f"Iceberg table {name}: {len(lost)} parts that leave SCORES ({min(lost)}) lie in files "
            f"that another engine has rewritten, where their rows cannot be told apart; {_AGAIN}"
        )


def _is_ours(snapshot: "Snapshot") -> bool:
    return snapshot.summary is not None and OURS in snapshot.summary.additional_properties


def _oldest_first(table: "Table", name: str) -> list["Snapshot"]:
    """Return the current snapshot and all that it came from, back to the table's first."""
    found: list[Snapshot] = []
    snapshot = table.current_snapshot()
    while snapshot is not None:
        found.append(snapshot)
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.snapshot_by_id(parent)
    # Not told by a missing parent: who expires snapshots may rewrite their children as orphans.
    if found and found[-1].sequence_number != _FIRST:
        raise ConfigError(
            f"Iceberg table {name}: another engine has rewritten its files, and the first "
            f"snapshots, which say what parts they hold, have been expired; {_AGAIN}"
        )
    return found[::-1]
