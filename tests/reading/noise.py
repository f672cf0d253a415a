"""Score tables of noise, part by part, for tests of what becomes of parts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SCORES

VERSION = "0123456789ab"
_SIDE, ROWS = 8, 40


def fragment_of(night: int, file: int, *, version: str = "1") -> Fragment:
    path = f"dt=2026-11-{night:02d}/{file}.parquet"
    return Fragment(path, (0,), 0, "ab"[file % 2], ROWS, version).keyed("settings")


def put(scores: Path, fragment: Fragment) -> None:
    """Commit a part with rows of noise: a tenth of them have no score."""
    rng = np.random.default_rng(int(fragment.key, 16))
    maps = rng.random((ROWS, _SIDE * _SIDE), dtype=np.float32)
    columns: dict[str, Sequence[object]] = {
        "image_id": [f"{fragment.path}#{row}" for row in range(ROWS)],
        "source_path": [fragment.path] * ROWS,
        "source_row": range(ROWS),
        "group": [fragment.group] * ROWS,
        "status": ["ok" if row % 10 else "unreadable" for row in range(ROWS)],
        "image_score": [m.max() if row % 10 else None for row, m in enumerate(maps)],
        "anomaly_map": [m if row % 10 else None for row, m in enumerate(maps)],
        "model_id": ["m"] * ROWS,
        "scored_at": [datetime(2026, 11, 25, tzinfo=UTC)] * ROWS,
    }
    arrays = [pa.array(columns.get(f.name, [None] * ROWS), f.type) for f in SCORES]
    parts.put_part(
        Folder(str(scores)), VERSION, fragment, pa.Table.from_arrays(arrays, schema=SCORES)
    )
