"""Which parts of a score table expire, by a rule, and which come back (`score --restore`)."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table import ledger
from patchlake.pipeline.storage.folder import Folder, hive_keys, is_hashed
from patchlake.pipeline.tables import SCORES
from patchlake.pipeline.where.condition import Where, parse_where
from patchlake.pipeline.where.values import Value

_AGE = re.compile(r"(\d{1,9})d", re.ASCII)
# Small reads behind a latency of tens of ms on an object store.
_READS_AT_ONCE = 16


@dataclass(frozen=True)
class Rule:
    """What picks, of the parts of a score table, those that expire. Build it with `parse_rule`."""

    where: Where

    def require_names(self, parts: Iterable[str], images: Iterable[str] = ()) -> None:
        """Refuse names that no part has, nor will have one of these images. Reads nothing.

        Raises:
            ConfigError: with the nearest known name.
        """
        found = {key for path in (*parts, *images) for key in hive_keys(path)}
        try:
            self.where.require_names({*found, "group", "scored_at"}, "hive key of a part")
        except ConfigError as error:
            raise ConfigError(f"--expire: {str(error).removeprefix('--where: ')}") from None

    def __call__(self, scores: Folder, names: Sequence[str]) -> list[str]:
        """Return those that expire; a key that a part lacks is null. Raises `ConfigError`.

        Reads each part's footer if the rule says `scored_at`, or `group` where no folder tells it.
        """
        asked = {name.lower() for name in self.where.names()}
        known = {key for name in names for key in hive_keys(name)}
        nulls: dict[str, Value] = dict.fromkeys({*known, "group", "scored_at"})

        def keys_of(name: str) -> dict[str, Value]:
            own = hive_keys(name)
            keys: dict[str, Value] = {**nulls, **own}
            # The folder of a long name is a digest, and no name.
            is_spelled = "g" in own and not is_hashed(own["g"])
            if asked & {"g", "group"} and not is_spelled:
                keys["g"] = own["g"] = _text_of(scores, name, "group") or ""
            if "group" not in own:
                keys["group"] = own.get("g")
            if "scored_at" in asked:
                keys["scored_at"] = _time_of(scores, name)
            return keys

        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            known_keys = pool.map(keys_of, names)
            return [
                name for name, keys in zip(names, known_keys, strict=True) if self.where.judge(keys)
            ]


def parse_rule(rule: str, now: datetime) -> Rule:
    """Return what picks, of the parts of a score table, those that a rule lets expire.

    Args:
        rule: An age in days since the rows were scored (`90d`), or a condition as of `--where`
            over the hive keys of a part, `group` and `scored_at` (a time).
        now: What an age counts from.

    Raises:
        ConfigError: on anything else.
    """
    age = _AGE.fullmatch(rule.strip())
    try:
        if age:
            until = now - timedelta(days=int(age[1]))
            return Rule(parse_where(f"scored_at < TIMESTAMPTZ '{until.isoformat(sep=' ')}'"))
        return Rule(parse_where(rule))
    except OverflowError:
        raise ConfigError(f"--expire {rule}: that is before the year 1") from None
    except ConfigError as error:
        raise ConfigError(
            f"--expire takes an age as 90d, or an expression as of --where: {error}"
        ) from None


def restore(scores: Folder, rule: str) -> list[str]:
    """Take parts out of the ledger, so that they are scored again; return their names.

    Each file of the ledger is replaced by one of what stays in it, which is written first: a kill
    in between brings back less, and never expires more.

    Args:
        scores: The score table.
        rule: `all`, or a condition over hive keys. Expired parts are gone: nothing else is known.

    Raises:
        ConfigError: if the rule is neither, or names a key that no expired part has.
    """
    entries = ledger.read(scores)
    parts = [part for entry in entries.values() for part in entry.parts]
    if rule.strip().lower() == "all":
        chosen = set(parts)
    else:
        where = parse_where(rule)
        known = {key for part in parts for key in _keys_by_path(part)}
        where.require_names(known, "hive key of an expired part")
        _require_named_groups(where, parts)
        nulls: dict[str, Value] = dict.fromkeys(known)
        chosen = {part for part in parts if where.judge({**nulls, **_keys_by_path(part)})}
    for name, entry in entries.items():
        staying = [part for part in entry.parts if part not in chosen]
        if len(staying) < len(entry.parts):
            ledger.record(scores, staying, entry.rule, entry.expired_at)
            scores.remove(name)
    return sorted(chosen)


def _require_named_groups(where: Where, parts: Iterable[str]) -> None:
    """Refuse a rule about groups where a part's folder is no name, and the part itself is gone."""
    hashed = [part for part in parts if is_hashed(hive_keys(part).get("g", ""))]
    if hashed and {name.lower() for name in where.names()} & {"g", "group"}:
        raise ConfigError(
            f"--restore: the names of the groups of {len(hashed)} expired parts are too long for "
            f"a folder, and are not known any more (for example {hashed[0]}); choose by another "
            "key, or restore all"
        )


def _keys_by_path(part: str) -> dict[str, Value]:
    keys: dict[str, Value] = {**hive_keys(part)}
    if "g" in keys and "group" not in keys:
        keys["group"] = keys["g"]
    return keys


def _time_of(scores: Folder, name: str) -> datetime | None:
    """Return when a part's rows were scored: one time for all."""
    found = _first(scores, name, "scored_at")
    assert isinstance(found, datetime | None)
    return found


def _text_of(scores: Folder, name: str, column: str) -> str | None:
    found = _first(scores, name, column)
    return None if found is None else str(found)


def _first(scores: Folder, name: str, column: str) -> object:
    """Return the value that all rows of a part have in a column: the footer knows it."""
    with scores.open(name) as handle:
        file = pq.ParquetFile(handle)
        flat = [file.schema.column(i).path for i in range(len(file.schema))].index(column)
        if not file.metadata.num_rows:
            return None
        statistics = file.metadata.row_group(0).column(flat).statistics
        if statistics is not None and statistics.has_min_max and statistics.min == statistics.max:
            return statistics.max
        return pc.max(file.read(columns=[column]).column(0).cast(_TYPES[column])).as_py()


_TYPES = {name: SCORES.field(name).type for name in ("group", "scored_at")}
