"""Reviews for tests."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from patchlake.pipeline.tables import REVIEWS

MORNING = datetime(2026, 11, 29, 6, tzinfo=UTC)


def review(image_id: str, verdict: str, reviewer: str = "ann", minute: int = 0, **more: object):
    """Return one row."""
    at = MORNING + timedelta(minutes=minute)
    said = {"image_id": image_id, "verdict": verdict, "reviewer": reviewer, "reviewed_at": at}
    return {"group": "tile", **said, **more}


def reviews(*rows: dict[str, object]) -> pa.Table:
    """Return a table of rows."""
    return pa.Table.from_pylist(list(rows), schema=REVIEWS)


def placed(row: int, verdict: str, reviewer: str = "ann", minute: int = 0, **more: object):
    """Return a row that says where its image is."""
    place = {"root": "/lake", "source_path": "a.parquet", "source_row": row}
    return review(f"{row}.png", verdict, reviewer, minute, **place) | more
