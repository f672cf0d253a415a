"""publish: heatmaps, then the part file, whose presence means that the fragment is done."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from patchlake.pipeline.config import Heatmaps, HeatmapStore
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import picture_size
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.score_table.heatmaps import heatmap_name, put_file, put_packed
from patchlake.pipeline.score_table.parts import put_part
from patchlake.pipeline.scores.heatmap import ColourScale, overlay, to_jpeg
from patchlake.pipeline.scores.outline import outlined
from patchlake.pipeline.scores.regions import Region, is_marked, regions_of
from patchlake.pipeline.scores.verdict import Verdict
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
    heatmaps: Heatmaps
    heatmap_store: HeatmapStore
    # Group -> digest of its model, colour scale of its heatmaps, and what scores are judged by, for
    # the groups that have them.
    model_ids: Mapping[str, str]
    scales: Mapping[str, ColourScale]
    verdicts: Mapping[str, Verdict]
    threads: int = 1

    def __call__(self, table: pa.Table) -> pa.Table:
        """Commit the fragment; return one row of schema `FRAGMENT_RESULT`."""
        return result_of(advance("publish", self._publish, table))

    def _publish(self, batch: FragmentBatch) -> FragmentBatch:
        judged = self._judged(batch)
        table = self._score_table(batch, judged, self._put_heatmaps(batch, judged))
        if len(table) != len(batch.rows):
            raise AssertionError(f"{len(batch.rows)} rows came in, {len(table)} would go out")
        put_part(self.scores, self.version, batch.fragment, table)
        return batch

    def _score_table(
        self, batch: FragmentBatch, judged: "_Judged", pictures: Mapping[int, str]
    ) -> pa.Table:
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
            **judged.columns,
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

    def _judged(self, batch: FragmentBatch) -> "_Judged":
        """Return what the verdict of the group says of each row."""
        rows = batch.rows
        nothing: list[object] = [None] * len(rows)
        if "image_score" not in rows.column_names:
            return _Judged({"image_score": nothing}, {})
        scores = rows.column("image_score")
        verdict = self.verdicts.get(batch.fragment.group)
        if verdict is None:
            return _Judged({"image_score": scores}, {})
        known = np.flatnonzero(scores.is_valid().to_numpy())
        values = scores.drop_null().to_numpy()
        is_anomalous = values > np.float32(verdict.threshold)
        regions = self._regions(batch, verdict, known, is_anomalous)
        columns: dict[str, object] = {"image_score": scores}
        for name, found in (
            ("p_value", [None if np.isnan(p) else p for p in verdict.p_values(values)]),
            ("is_anomalous", is_anomalous.tolist()),
            ("threshold", [verdict.threshold] * len(known)),
            ("pixel_threshold", [verdict.pixel_threshold] * len(known)),
            ("regions", regions),
        ):
            column = nothing.copy()
            for row, value in zip(known, found, strict=True):
                column[row] = value
            columns[name] = column
        return _Judged(columns, dict(zip(known.tolist(), is_anomalous.tolist(), strict=True)))

    def _regions(
        self, batch: FragmentBatch, verdict: Verdict, known: np.ndarray, is_anomalous: np.ndarray
    ) -> list[list[dict[str, float]] | None]:
        """Return the regions of the rows that have a score; None where there is no map."""
        threshold = verdict.pixel_threshold
        if threshold is None or not batch.array.size:
            return [None] * len(known)
        sizes = [batch.rows.column(name).take(pa.array(known)) for name in ("width", "height")]
        found: list[list[dict[str, float]] | None] = []
        for number, anomalous in enumerate(is_anomalous):
            regions: list[Region] = []
            if anomalous:
                size = sizes[0][number].as_py(), sizes[1][number].as_py()
                frame = self.geometry.to_frame(batch.array[number], size, picture_size(*size))
                regions = regions_of(frame, is_marked(frame, threshold), size)
            found.append([asdict(one) for one in regions])
        return found

    def _put_heatmaps(self, batch: FragmentBatch, judged: "_Judged") -> dict[int, str]:
        """Draw the pictures and put them; return their paths by source row."""
        fragment = batch.fragment
        if self.heatmaps == "none" or fragment.group not in self.scales or not batch.array.size:
            return {}
        ok = np.flatnonzero(pc.equal(batch.rows.column("status"), "ok").to_numpy())
        # Without verdicts nobody knows which are anomalous.
        every = self.heatmaps == "all" or not judged.is_anomalous
        wanted = np.array([every or judged.is_anomalous[row] for row in ok.tolist()], bool)
        drawn = batch.rows.take(pa.array(ok[wanted]))
        maps = batch.array[wanted]
        if "interior" not in drawn.column_names:
            drawn = drawn.append_column("interior", pa.nulls(len(drawn), pa.binary()))
        names = ["source_row", "width", "height", "picture", "interior"]
        rows = zip(*(drawn.column(name) for name in names), strict=True)
        passed, store = Passed("publish", fragment.key), self.heatmap_store
        if store == "packed":
            draw = partial(self._drawn, fragment, passed)
            with ThreadPoolExecutor(self.threads) as pool:
                pictures = dict(pool.map(draw, rows, maps))
            if pictures:
                put_packed(self.scores, fragment.key, pictures)
            return {row: heatmap_name(fragment.key, row, store) for row in pictures}
        write = partial(self._written, fragment, passed)
        with ThreadPoolExecutor(max(self.threads, _PUTS_AT_ONCE)) as pool:
            written = list(pool.map(write, rows, maps))
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
        source_row, width, height, picture, interior = row
        size = width.as_py(), height.as_py()
        shape = picture_size(*size)
        frame = self.geometry.to_frame(anomaly_map, size, shape)
        grey = np.frombuffer(picture.as_buffer(), np.uint8).reshape(shape)
        drawn = overlay(grey, frame, self.scales[fragment.group])
        if interior.is_valid:
            inside = Interior.from_bytes(interior.as_py()).pixels()
            drawn = outlined(drawn, self.geometry.over_frame(inside, size, shape))
        content = to_jpeg(drawn)
        passed(1)
        return source_row.as_py(), content


@dataclass(frozen=True)
class _Judged:
    """What the verdict says of a fragment's rows."""

    # Columns of the score table.
    columns: Mapping[str, object]
    # By the row's number, of those that have a score; none where the group has no verdict.
    is_anomalous: Mapping[int, bool]


def _as(values: object, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)
