"""publish: heatmaps, then the part file, whose presence means that the fragment is done."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from patchlake.pipeline.config import HeatmapStore
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import picture_size
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.score_table.heatmaps import heatmap_name, put_file, put_packed
from patchlake.pipeline.score_table.parts import put_part
from patchlake.pipeline.scores.heatmap import ColourScale, overlay, to_jpeg
from patchlake.pipeline.stages.batch import FragmentBatch, advance, result_of
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SCORES

# A put takes some 30 ms of waiting on an object store, drawing a heatmap 10 ms of a core.
_PUTS_AT_ONCE = 4


@dataclass(frozen=True)
class Publish:
    """Stage: writes a fragment's heatmaps and part; returns its result."""

    # Of the fit: from the map to the picture.
    geometry: Geometry
    scores: Folder
    version: str
    scored_at: datetime
    heatmaps: Literal["all", "none"]
    heatmap_store: HeatmapStore
    # Group -> digest of its model, colour scale of its heatmaps, and the score above which an image
    # is anomalous, for the groups that have them.
    model_ids: Mapping[str, str]
    scales: Mapping[str, ColourScale]
    thresholds: Mapping[str, float]
    threads: int = 1

    def __call__(self, table: pa.Table) -> pa.Table:
        """Commit the fragment; return one row of schema `FRAGMENT_RESULT`."""
        return result_of(advance("publish", self._publish, table))

    def _publish(self, batch: FragmentBatch) -> FragmentBatch:
        fragment = batch.fragment
        table = self._score_table(batch, self._put_heatmaps(batch))
        if len(table) != len(batch.rows):
            raise AssertionError(f"{len(batch.rows)} rows came in, {len(table)} would go out")
        put_part(self.scores, self.version, fragment, table)
        return batch

    def _score_table(self, batch: FragmentBatch, pictures: Mapping[int, str]) -> pa.Table:
        """Return the part's rows; `pictures` are paths by source row, of the rows that have one."""
        fragment, rows = batch.fragment, batch.rows
        count = len(rows)
        is_ok = [status == "ok" for status in batch.statuses()]
        # A method without anomaly maps hands on maps of no patches.
        is_mapped = [ok and batch.array.size > 0 for ok in is_ok]
        maps = (anomaly_map.ravel() for anomaly_map in batch.array)
        grid = batch.array.shape[1:]
        source_rows = rows.column("source_row").to_pylist()
        computed: dict[str, object] = {
            "source_path": [fragment.path] * count,
            "group": [fragment.group] * count,
            **self._verdicts(rows, fragment.group),
            "anomaly_map": [next(maps) if mapped else None for mapped in is_mapped],
            "map_height": [grid[0] if mapped else None for mapped in is_mapped],
            "map_width": [grid[1] if mapped else None for mapped in is_mapped],
            "heatmap_path": [pictures.get(row) for row in source_rows],
            "model_id": [self.model_ids.get(fragment.group, "")] * count,
            "scored_at": [self.scored_at] * count,
        }
        columns = []
        for field in SCORES:
            if field.name in computed:
                values = computed[field.name]
            elif field.name in rows.column_names:
                values = rows.column(field.name)
            else:
                values = [None] * count
            columns.append(_as(values, field.type))
        table = pa.Table.from_arrays(columns, schema=SCORES)
        for name in rows.column_names:
            if name.startswith("extra:"):
                table = table.append_column(name.removeprefix("extra:"), rows.column(name))
        return table

    def _verdicts(self, rows: pa.Table, group: str) -> dict[str, object]:
        """Return the scores, and what the threshold says of them where the group has one."""
        if "image_score" not in rows.column_names:
            return {"image_score": [None] * len(rows)}
        scores = rows.column("image_score")
        threshold = self.thresholds.get(group)
        if threshold is None:
            return {"image_score": scores}
        return {
            "image_score": scores,
            "is_anomalous": pc.greater(scores, threshold),
            "threshold": [threshold if score.is_valid else None for score in scores],
        }

    def _put_heatmaps(self, batch: FragmentBatch) -> dict[int, str]:
        """Draw the pictures and put them; return their paths by source row."""
        fragment = batch.fragment
        if self.heatmaps == "none" or fragment.group not in self.scales or not batch.array.size:
            return {}
        drawn = batch.rows.filter(pc.equal(batch.rows.column("status"), "ok"))
        names = ["source_row", "width", "height", "picture"]
        rows = zip(*(drawn.column(name) for name in names), strict=True)
        passed, store = Passed("publish", fragment.key), self.heatmap_store
        if store == "packed":
            draw = partial(self._drawn, fragment, passed)
            with ThreadPoolExecutor(self.threads) as pool:
                pictures = dict(pool.map(draw, rows, batch.array))
            put_packed(self.scores, fragment.key, pictures)
            return {row: heatmap_name(fragment.key, row, store) for row in pictures}
        write = partial(self._written, fragment, passed)
        with ThreadPoolExecutor(max(self.threads, _PUTS_AT_ONCE)) as pool:
            written = list(pool.map(write, rows, batch.array))
        return {row: heatmap_name(fragment.key, row, store) for row in written}

    def _written(
        self,
        fragment: Fragment,
        passed: Passed,
        row: tuple[pa.Scalar, ...],
        anomaly_map: Float32[np.ndarray, "rows columns"],
    ) -> int:
        """Put one picture as a file; return its source row."""
        source_row, content = self._drawn(fragment, passed, row, anomaly_map)
        put_file(self.scores, fragment.key, source_row, content)
        return source_row

    def _drawn(
        self,
        fragment: Fragment,
        passed: Passed,
        row: tuple[pa.Scalar, ...],
        anomaly_map: Float32[np.ndarray, "rows columns"],
    ) -> tuple[int, bytes]:
        """Return one picture's source row, and the picture as JPEG."""
        source_row, width, height, picture = row
        size = width.as_py(), height.as_py()
        shape = picture_size(*size)
        frame = self.geometry.to_frame(anomaly_map, size, shape)
        grey = np.frombuffer(picture.as_buffer(), np.uint8).reshape(shape)
        content = to_jpeg(overlay(grey, frame, self.scales[fragment.group]))
        passed(1)
        return source_row.as_py(), content


def _as(values: object, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)
