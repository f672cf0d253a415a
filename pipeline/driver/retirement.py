"""What a scoring run does once its parts are committed: parts that are over go, in a safe order."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import expiry, iceberg, ledger, parts
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

# Parts of older contents: of what is committed for a version, given the keys that have expired.
Superseded = Callable[[parts.CommittedParts, pa.StringArray], list[str]]


@dataclass(frozen=True)
class Retirement:
    """Removes parts of older contents and expired ones, after they have left the Iceberg table."""

    rule: str | None
    expires: expiry.Rule | None
    now: datetime
    iceberg_table: str | None

    @classmethod
    def checked(cls, rule: str | None, iceberg_table: str | None) -> "Retirement":
        """Return it, once what can be wrong with a rule and a table has been looked at.

        Raises:
            ConfigError: if the rule is none, or the Iceberg catalog cannot be opened.
        """
        now = runs.now()
        if iceberg_table is not None:
            iceberg.check(iceberg_table)
        return cls(rule, expiry.parse_rule(rule, now) if rule else None, now, iceberg_table)

    def __call__(
        self, scores: Folder, job: runs.Run, superseded: Superseded, in_ledger: pa.StringArray
    ) -> "RetiredParts":
        """Publish, and remove what is over.

        Each step can be repeated: a run that was killed anywhere is made up for by the next one,
        and so is what another run has written into the ledger since it was read.

        Args:
            scores: The score table.
            job: Whose parts are committed.
            superseded: Says which parts are of older contents, by the files themselves.
            in_ledger: Keys of its version that have expired before.
        """
        version = job.record.version
        done = parts.committed(scores, version)
        leaving = {
            *superseded(done, in_ledger),
            # A kill came between their entry in the ledger and their removal.
            *done.names.filter(pc.is_in(done.sorted_keys, value_set=in_ledger)).to_pylist(),
        }
        if self.rule is not None and self.expires is not None:
            every = [entry.name for entry in parts.every_part(scores)]
            expired = self.expires(scores, every)
            ledger.record(scores, expired, self.rule, self.now)
            leaving.update(expired)
            say_expired(self.rule, expired, len(every))
        if self.iceberg_table is not None:
            snapshot = iceberg.publish(
                self.iceberg_table, scores, version, leaving, run=job.record.run
            )
            changed = (snapshot.added, snapshot.removed) if snapshot else (0, 0)
            log.info("%s: %d parts added, %d removed", self.iceberg_table, *changed)
        removed = sorted(leaving)
        parts.remove(scores, removed)
        return RetiredParts(removed, done)

    def require_names(self, scores: Folder, images: Sequence[str]) -> list[str]:
        """Refuse a rule with unknown names; return the parts that it would let go now.

        Args:
            scores: The score table.
            images: Paths of what is scored, whose hive keys its parts will have.

        Raises:
            ConfigError: if a name is no hive key, `group` or `scored_at`.
        """
        if self.expires is None:
            return []
        every = [entry.name for entry in parts.every_part(scores)]
        self.expires.require_names(every, images)
        return self.expires(scores, every)


# Of the parts that go, so many are named on the terminal; the summary names them all.
_NAMED = 5


def say_expired(rule: str, expired: Sequence[str], every: int) -> None:
    """Log how many parts go, and the first of them."""
    named = ", ".join(expired[:_NAMED]) + (", ..." if len(expired) > _NAMED else "")
    names = f": {named}" if expired else ""
    log.warning("--expire %s: %d of %d parts are removed%s", rule, len(expired), every, names)


@dataclass(frozen=True)
class RetiredParts:
    """Names of parts that went, and what was there before they did."""

    removed: list[str]
    before: parts.CommittedParts

    def left(self, fragments: Fragments) -> list[str]:
        """Return the names of those fragments' parts that are there."""
        gone = set(self.removed)
        return [name for name in self.before.of_plan(fragments).to_pylist() if name not in gone]
