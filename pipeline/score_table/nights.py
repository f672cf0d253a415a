"""Which night a row of scores is of: a hive key, or the day on which it was scored."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import ConfigError

# Names of keys that tell a day, the usual one first.
_KEYS = ("dt", "date", "day", "night")


def night_key(names: Sequence[str], asked: str | None = None) -> str:
    """Return the column that tells nights: the one asked for, a usual key, or `scored_at`.

    Args:
        names: Columns of the score table, with its hive keys.
        asked: By the user.

    Raises:
        ConfigError: if there is no such column.
    """
    if asked is not None:
        if asked not in names:
            raise ConfigError(f"there is no column '{asked}' to tell nights by, but {list(names)}")
        return asked
    return next((name for name in _KEYS if name in names), "scored_at")


def nights(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return the night of each row as text: times as their day in UTC, all else as it is spelled.

    Null, as of a row without the key, is the empty text.
    """
    if pa.types.is_timestamp(values.type):
        values = pc.strftime(values, "%Y-%m-%d")
    return pc.fill_null(values.cast(pa.string()), "")
