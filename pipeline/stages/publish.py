"""publish: heatmaps, then the part file, whose presence means that the fragment is done."""

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa

from patchlake.pipeline.config import Heatmaps, HeatmapStore
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.geometry import Geometries, Geometry
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.score_table.heatmaps import heatmap_name, put_file, put_packed
from patchlake.pipeline.score_table.parts import put_part
from patchlake.pipeline.scores.heatmap import ColourScale, to_jpeg
from patchlake.pipeline.scores.verdict import Judgement, Verdict, judgements_of
from patchlake.pipeline.stages.batch import FragmentBatch, advance, result_of
from patchlake.pipeline.stages.examined import Examined
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SCORES

# A put takes some 30 ms of waiting on an object store, drawing a heatmap 10 ms of a core.
_PUTS_AT_ONCE = 4


@dataclass(frozen=True)
class Publish:
    """Stage: writes a fragment's heatmaps and part; returns its result."""

    # Of the fit: from the map to the picture.
    geometry: Geometry | Geometries
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
        judgements = self._judgements(batch)
        table = self._score_table(batch, judgements, self._examine(batch, judgements))
        if len(table) != len(batch.rows):
            raise AssertionError(f"{len(batch.rows)} rows came in, {len(table)} would go out")
        put_part(self.scores, self.version, batch.fragment, table)
        return batch

    def _judgements(self, batch: FragmentBatch) -> dict[int, Judgement]:
        """Return what is said of each row that has a score, by its number, in their order."""
        if "image_score" not in batch.rows.column_names:
            return {}
        scores = batch.rows.column("image_score")
        known = np.flatnonzero(scores.is_valid().to_numpy())
        verdict = self.verdicts.get(batch.fragment.group)
        found = judgements_of(scores.drop_null().to_numpy(), verdict)
        return dict(zip(known.tolist(), found, strict=True))

    def _score_table(
        self,
        batch: FragmentBatch,
        judgements: Mapping[int, Judgement],
        seen: Mapping[int, "_Seen"],
    ) -> pa.Table:
        """Return the part's rows; `judgements` and `seen` are by the row's number."""
        fragment, rows = batch.fragment, batch.rows
        count = len(rows)
        # A method without anomaly maps hands on maps of no patches.
        maps = dict(zip(seen, batch.array, strict=True)) if seen else {}
        said = [judgements.get(row) for row in range(count)]
        found = [seen.get(row, _UNSEEN) for row in range(count)]
        grid = batch.array.shape[1:]
        computed: dict[str, object] = {
            "source_path": [fragment.path] * count,
            "group": [fragment.group] * count,
            "p_value": [one and one.p_value for one in said],
            "is_anomalous": [one and one.is_anomalous for one in said],
            "threshold": [one and one.threshold for one in said],
            "pixel_threshold": [one and one.pixel_threshold for one in said],
            "regions": [one.regions for one in found],
            "anomaly_map": [maps[row].ravel() if row in maps else None for row in range(count)],
            "map_height": [grid[0] if row in maps else None for row in range(count)],
            "map_width": [grid[1] if row in maps else None for row in range(count)],
            "heatmap_path": [one.heatmap_path for one in found],
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

    def _examine(
        self, batch: FragmentBatch, judgements: Mapping[int, Judgement]
    ) -> "dict[int, _Seen]":
        """Find regions, draw heatmaps and put them; return what was found by the row's number.

        Rows without a map are not in it.
        """
        if not batch.array.size:
            return {}
        key, is_packed = batch.fragment.key, self.heatmap_store == "packed"
        drawn = self._drawn(batch.fragment.group, judgements)
        see = partial(self._see, batch, Passed("publish", key), drawn)
        threads = self.threads if is_packed else max(self.threads, _PUTS_AT_ONCE)
        with ThreadPoolExecutor(threads) as pool:
            seen = list(pool.map(see, judgements, self._images(batch, judgements)))
        packed = dict(one.packed for one in seen if one.packed is not None)
        put_packed(self.scores, key, packed)
        return dict(zip(judgements, seen, strict=True))

    def _images(
        self, batch: FragmentBatch, judgements: Mapping[int, Judgement]
    ) -> Iterator[Examined]:
        rows = batch.rows
        widths, heights = (rows.column(name) for name in ("width", "height"))
        interiors = rows.column("interior") if "interior" in rows.column_names else None
        geometry = self.geometry.of(batch.fragment.group)
        for (row, judgement), anomaly_map in zip(judgements.items(), batch.array, strict=True):
            size = widths[row].as_py(), heights[row].as_py()
            content = None if interiors is None else interiors[row].as_py()
            interior = None if content is None else Interior.from_bytes(content)
            yield Examined(judgement, anomaly_map, size, geometry, interior)

    def _drawn(self, group: str, judgements: Mapping[int, Judgement]) -> set[int]:
        """Return which rows get a heatmap."""
        if self.heatmaps == "none" or group not in self.scales:
            return set()
        # Without verdicts nobody knows which are anomalous.
        every = self.heatmaps == "all" or group not in self.verdicts
        return {row for row, one in judgements.items() if every or one.is_anomalous}

    def _see(
        self,
        batch: FragmentBatch,
        passed: Passed,
        drawn: Container[int],
        row: int,
        image: Examined,
    ) -> "_Seen":
        """Return what is seen of the row of that number. A file of its picture is put here."""
        found = image.regions()
        regions = None if found is None else [asdict(one) for one in found]
        if row not in drawn:
            return _Seen(regions)
        source_row, photo = (
            batch.rows.column(name)[row].as_py() for name in ("source_row", "photo")
        )
        key = batch.fragment.key
        picture = to_jpeg(image.picture(photo, self.scales[batch.fragment.group]))
        passed(1)
        path = heatmap_name(key, source_row, self.heatmap_store)
        if self.heatmap_store == "packed":
            return _Seen(regions, path, (source_row, picture))
        put_file(self.scores, key, source_row, picture)
        return _Seen(regions, path)


@dataclass(frozen=True)
class _Seen:
    """What is seen of one row that has a map."""

    # As the score table has them.
    regions: list[dict[str, float]] | None = None
    heatmap_path: str | None = None
    # A picture that is still to be put, and of which row.
    packed: tuple[int, bytes] | None = None


_UNSEEN = _Seen()


def _as(values: object, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)
