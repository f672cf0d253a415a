"""plan: which fragments there are, under which keys, and which of their rows a job uses."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow.parquet as pq

from pipeline.config import ColumnSettings, Settings, digest
from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragments, plan
from pipeline.lake.s3_file import fetch_columns
from pipeline.lake.where import parse_where
from pipeline.stages.decode import Selection

# Label columns are small, behind the latency of an object store.
_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class Plan:
    """Fragments in (path, first row, group) order; `kept` are those that `--where` keeps."""

    every: Fragments
    kept: Fragments

    @property
    def images(self) -> int:
        """Rows of the kept fragments."""
        return self.kept.images

    @property
    def groups(self) -> list[str]:
        """Groups of the kept fragments."""
        return self.kept.groups


def plan_fragments(images: Folder, settings: Settings, where: str | None) -> Plan:
    """Return the plan of a job over a lake, without keys.

    Raises:
        ConfigError: if there are no images, or `where` keeps none.
        TableError: if a file is not an images table.
    """
    every = plan(images, settings.columns, settings.fragment_images)
    kept = every if where is None else every.where(parse_where(where))
    if not kept:
        raise ConfigError(
            f"--where {where!r} keeps none of {len(every)} fragments of {images.root}"
        )
    return Plan(every, kept)


def keyed(plan: Plan, settings_digests: Mapping[str, str], otherwise: str) -> Plan:
    """Return the plan with keys; the digest is the group's, or `otherwise` where it has none."""
    every = plan.every.keyed(settings_digests, otherwise)
    same = plan.kept is plan.every
    return Plan(every, every if same else plan.kept.keyed(settings_digests, otherwise))


def output_digest(settings: Settings) -> str:
    """Return the digest of all settings that a part's bytes depend on, besides the model.

    Runner, workers, `batch_size`, `max_failed` and where parts are published are not among them.
    """
    return digest(
        {
            "image": settings.image.model_dump(mode="json"),
            "score": settings.score.model_dump(mode="json", exclude={"iceberg_table"}),
            "columns": settings.columns.model_dump(mode="json"),
            "fragment_images": settings.fragment_images,
        }
    )


def training_selections(
    images: Folder, fragments: Fragments, columns: ColumnSettings
) -> dict[str, Selection]:
    """Return which rows of each group a fit uses: the good ones, or all where none has a label.

    Reads the label column of every file, several at a time.
    """
    labelled: set[str] = set()
    files = fragments.table.group_by(["path", "version"]).aggregate([]).to_pylist()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for known in pool.map(partial(_labelled, images, columns), files):
            labelled |= known
    return {group: "good" if group in labelled else "unlabelled" for group in fragments.groups}


def _labelled(images: Folder, columns: ColumnSettings, place: dict[str, str]) -> set[str]:
    """Return the groups of a file (path, version) that have a label."""
    with images.open(place["path"], place["version"]) as handle:
        file = pq.ParquetFile(handle)
        if columns.label not in file.schema_arrow.names:
            return set()
        names = [columns.group, columns.label]
        fetch_columns(handle, file, range(file.num_row_groups), names)
        table = file.read(columns=names)
    known = table.filter(table.column(columns.label).is_valid())
    return set(known.column(columns.group).unique().to_pylist())
