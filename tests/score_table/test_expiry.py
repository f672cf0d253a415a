"""Which parts expire: by their own names, however long."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table.expiry import parse_rule, restore
from patchlake.pipeline.score_table.ledger import record
from patchlake.pipeline.storage.folder import Folder, escape, is_hashed
from patchlake.pipeline.tables import SCORES

LONG, NOW = "部" * 80, datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    """Group -> part."""
    found = {}
    for group in (LONG, "tile"):
        found[group] = f"version=abc/g={escape(group)}/x/{0:020}.parquet"
        path = tmp_path / found[group]
        path.parent.mkdir(parents=True)
        at = pa.array([NOW], SCORES.field("scored_at").type)
        pq.write_table(pa.table({"group": [group], "scored_at": at}), path)
    assert is_hashed(escape(LONG))
    return found


def test_a_group_of_a_long_name_is_picked_by_its_name(parts, tmp_path):
    scores = Folder(str(tmp_path))
    for rule, picked in (
        (f"\"group\" = '{LONG}'", [LONG]),
        (f"\"group\" NOT IN ('{LONG}')", ["tile"]),
        (f"g = '{LONG}'", [LONG]),
        ("\"group\" LIKE '部%'", [LONG]),
        ("\"group\" = 'tile'", ["tile"]),
    ):
        names = list(parts.values())
        assert parse_rule(rule, NOW)(scores, names) == [parts[group] for group in picked], rule


def test_restoring_by_a_name_that_is_gone_is_refused(parts, tmp_path):
    scores = Folder(str(tmp_path))
    record(scores, parts.values(), "any", NOW)
    with pytest.raises(ConfigError, match="1 expired parts are too long"):
        restore(scores, f"\"group\" = '{LONG}'")
    assert restore(scores, "all") == sorted(parts.values())
