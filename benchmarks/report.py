r"""report: seconds, memory and bytes of the page of a million rows.

    python benchmarks/report.py WORK [--rows 1000000] [--groups 20] [--nights 30] [--part 10000]

The rows are as `score` writes them, with anomaly maps of 28 x 28, which a page does not need, and
with verdicts, and regions of one image in fifty. There are no images and no heatmaps: pictures are
of a hundred images at most, whatever the table is.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchlake.pipeline.driver import report
from patchlake.pipeline.score_table.parquet import PART_ORDER, write_sorted
from patchlake.pipeline.tables import SCORES

_MAP = 28
_THRESHOLD = 14.0


def main() -> None:
    """Write a table where there is none, then print what its page takes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--part", type=int, default=10_000, help="rows of a part at the most")
    arguments = parser.parse_args()
    scores = arguments.work / "scores"
    if not scores.exists():
        _write(scores, arguments)
    size = sum(path.stat().st_size for path in scores.rglob("*.parquet"))
    parts = sum(1 for _ in scores.rglob("*.parquet"))
    begin, worked = time.perf_counter(), time.process_time()
    written = report.run(str(scores), str(arguments.work / "page.html"))
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    # KB on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"{written.images:,} rows in {parts:,} parts, {size / 1e9:.2f} GB")
    print(f"{seconds:.1f} s, of the processor {worked:.1f} s, peak memory {peak / 1e6:.0f} MB")
    print(f"page {written.bytes / 1e6:.2f} MB")


def _write(scores: Path, arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    cells = arguments.groups * arguments.nights
    per_cell = -(-arguments.rows // cells)
    for night in range(arguments.nights):
        day = date(2026, 11, 1) + timedelta(days=night)
        for group in range(arguments.groups):
            folder = scores / "version=abc" / f"dt={day}" / f"g=group{group:05}"
            folder.mkdir(parents=True)
            for number, rows in enumerate(_cut(per_cell, arguments.part)):
                name = f"part-{group:012x}-{night:010x}{number:010x}.parquet"
                with (folder / name).open("wb") as sink:
                    write_sorted(_rows(rng, rows, f"group{group:05}", f"{day}"), sink, PART_ORDER)


def _cut(rows: int, most: int) -> Iterator[int]:
    for begin in range(0, rows, most):
        yield min(most, rows - begin)


def _rows(rng: np.random.Generator, rows: int, group: str, day: str) -> pa.Table:
    score = rng.gamma(20, 0.5, rows).astype(np.float32)
    failed = rng.random(rows) < 0.002
    alarm = (score > _THRESHOLD) & ~failed
    maps = rng.normal(8, 1, (rows, _MAP * _MAP)).astype(np.float32)
    values = pa.array(maps.ravel())
    starts = pa.array(np.arange(rows + 1, dtype=np.int32) * _MAP * _MAP)
    given = {
        "image_id": [f"{group}/{day}/{number:06}.jpg" for number in range(rows)],
        "source_path": [f"dt={day}/g={group}/images.parquet"] * rows,
        "source_row": np.arange(rows),
        "group": [group] * rows,
        "status": np.where(failed, "unreadable", "ok"),
        "error": pa.array(["cut short"] * rows, mask=~failed),
        "image_score": pa.array(score, mask=failed),
        "p_value": pa.array(np.where(alarm, 0.005, 0.5).astype(np.float32), mask=failed),
        "is_anomalous": pa.array(alarm, mask=failed),
        "threshold": pa.array(np.full(rows, _THRESHOLD, np.float32), mask=failed),
        "anomaly_map": pa.ListArray.from_arrays(starts, values),
        "map_height": np.full(rows, _MAP, np.int32),
        "map_width": np.full(rows, _MAP, np.int32),
        "regions": [_regions(rng) if one else [] for one in alarm],
        "heatmap_path": pa.array(
            [f"_heatmaps/{'0' * 20}/{number}.jpg" for number in range(rows)], mask=~alarm
        ),
        "width": np.full(rows, 1920, np.int32),
        "height": np.full(rows, 1080, np.int32),
        "model_id": ["a" * 64] * rows,
        "scored_at": [datetime(2026, 11, 30, tzinfo=UTC)] * rows,
    }
    arrays = [_array(given.get(field.name, [None] * rows), field.type) for field in SCORES]
    return pa.Table.from_arrays(arrays, schema=SCORES)


def _array(column: object, kind: pa.DataType) -> pa.Array:
    return column.cast(kind) if isinstance(column, pa.Array) else pa.array(column, kind)


def _regions(rng: np.random.Generator) -> list[dict[str, float]]:
    found = []
    for _ in range(rng.integers(1, 4)):
        x, y = int(rng.integers(0, 1800)), int(rng.integers(0, 1000))
        box = {"x": x, "y": y, "width": 90, "height": 60, "area": 4000, "peak": 20.0}
        found.append(box | {"centre_x": x + 45.0, "centre_y": y + 30.0})
    return found


if __name__ == "__main__":
    main()
