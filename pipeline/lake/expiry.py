"""Old parts of a score table go, and are remembered: what has expired is not scored again.

    _ledger/version=<v12>/<digest>.json   the parts of that version that a command let expire

A part is first recorded, then its heatmaps are removed, then the part itself; a part that is
recorded and still there was left by a kill, and the next run removes it. To score expired images
again, remove their file of the ledger.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder, hive_keys
from pipeline.lake.owned import read_json
from pipeline.lake.parts import key_of
from pipeline.lake.where import parse_where

_LEDGER = "_ledger"
_AGAIN = "restore it; without it what has expired is scored again"
_AGE = re.compile(r"(\d+)d")
_TIME = re.compile(r"\bscored_at\b")
# Small reads behind a latency of tens of ms on an object store.
_READS_AT_ONCE = 16


class Expired(BaseModel):
    """One file of the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    expired_at: datetime
    parts: list[str]


def parse_rule(rule: str, now: datetime) -> Callable[[Folder, Sequence[str]], list[str]]:
    """Return what picks, of the parts of a score table, those that a rule lets expire.

    Args:
        rule: An age in days since the rows were scored (`90d`), or an expression as of `--where`
            over the hive keys of a part and `scored_at` (as `2026-11-20T06:00:00Z`). Where it
            says `scored_at`, and for an age, a part's footer is read.
        now: What an age counts from.

    Raises:
        ConfigError: on anything else. What is returned raises it for an unknown key.
    """
    age = _AGE.fullmatch(rule.strip())
    if age:
        rule = f"scored_at < '{_text(now - timedelta(days=int(age[1])))}'"
    try:
        expires = parse_where(rule)
    except ConfigError as error:
        raise ConfigError(
            f"--expire takes an age as 90d, or an expression as of --where: {error}"
        ) from None

    def pick(scores: Folder, names: Sequence[str]) -> list[str]:
        times = _scored_at(scores, names) if _TIME.search(rule) else [""] * len(names)
        keys = [
            hive_keys(name) | {"scored_at": time} for name, time in zip(names, times, strict=True)
        ]
        return [name for name, known in zip(names, keys, strict=True) if expires(known)]

    return pick


def record(scores: Folder, names: Iterable[str], rule: str, now: datetime) -> None:
    """Enter parts into the ledger, each under its version. Entering them again changes nothing."""
    by_version: dict[str, list[str]] = {}
    for name in sorted(names):
        by_version.setdefault(PurePosixPath(name).parts[0], []).append(name)
    for version, expired in by_version.items():
        digest = hashlib.sha256("\n".join(expired).encode()).hexdigest()[:20]
        entry = Expired(rule=rule, expired_at=now, parts=expired)
        content = entry.model_dump_json(indent=1).encode()
        scores.create(f"{_LEDGER}/{version}/{digest}.json", content)


def expired_keys(scores: Folder, version: str) -> pa.StringArray:
    """Return the keys of a version that are in the ledger. One small read an entry."""
    files = [entry.name for entry in scores.find(f"{_LEDGER}/version={version}")]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        entries = pool.map(lambda name: read_json(scores, name, Expired, _AGAIN), files)
        return pa.array([key_of(part) for entry in entries for part in entry.parts], pa.string())


def _scored_at(scores: Folder, names: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(pool.map(lambda name: _text(_time_of(scores, name)), names))


def _time_of(scores: Folder, name: str) -> datetime:
    """Return when a part's rows were scored: one time for all, in the footer's statistics."""
    with scores.open(name) as handle:
        file = pq.ParquetFile(handle)
        flat = [file.schema.column(i).path for i in range(len(file.schema))].index("scored_at")
        statistics = file.metadata.row_group(0).column(flat).statistics
        if statistics is not None and statistics.has_min_max:
            found = statistics.max
        else:
            found = pc.max(file.read(columns=["scored_at"]).column(0)).as_py()
    assert isinstance(found, datetime)
    return found


def _text(time: datetime) -> str:
    utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%SZ")
