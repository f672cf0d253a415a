"""The ledger of a score table: parts that are gone, and are not to be scored again.

    _ledger/version=<v12>/<digest>.json   the parts of that version that a command let expire

A part is first recorded, then its heatmaps are removed, then the part itself; a part that is
recorded and still there was left by a kill, and the next run removes it.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import PurePosixPath

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from patchlake.pipeline.score_table.parts import key_of
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import read_json

_FOLDER = "_ledger"
_AGAIN = "restore it; without it what has expired is scored again"
# Small reads behind a latency of tens of ms on an object store.
_READS_AT_ONCE = 16


class LedgerEntry(BaseModel):
    """One file of the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    expired_at: AwareDatetime
    parts: list[str]


def record(scores: Folder, names: Iterable[str], rule: str, now: datetime) -> None:
    """Enter parts into the ledger, each under its version. Entering them again changes nothing."""
    by_version: dict[str, list[str]] = {}
    for name in sorted(names):
        by_version.setdefault(PurePosixPath(name).parts[0], []).append(name)
    for version, expired in by_version.items():
        digest = hashlib.sha256("\n".join(expired).encode()).hexdigest()[:20]
        entry = LedgerEntry(rule=rule, expired_at=now, parts=expired)
        content = entry.model_dump_json(indent=1).encode()
        scores.create(f"{_FOLDER}/{version}/{digest}.json", content)


def expired_keys(scores: Folder, version: str) -> pa.StringArray:
    """Return the keys of a version that are in the ledger. One small read an entry."""
    entries = read(scores, f"version={version}").values()
    return pa.array([key_of(part) for entry in entries for part in entry.parts], pa.string())


def read(scores: Folder, below: str = "") -> dict[str, LedgerEntry]:
    """Return the files of the ledger, or of one version's folder in it, by name."""
    files = [entry.name for entry in scores.find(f"{_FOLDER}/{below}".rstrip("/"))]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        entries = list(pool.map(lambda name: read_json(scores, name, LedgerEntry, _AGAIN), files))
    return dict(zip(files, entries, strict=True))
