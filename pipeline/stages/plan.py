"""plan: which fragments there are, under which keys, and which of their rows a job uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.config import ColumnSettings, Settings, digest
from pipeline.errors import ConfigError
from pipeline.lake.folder import Folder
from pipeline.lake.fragments import Fragment, keys_of, plan
from pipeline.lake.where import parse_where
from pipeline.stages.decode import Selection


@dataclass(frozen=True)
class Plan:
    """Fragments in (path, first row, group) order; `kept` are those that `--where` keeps."""

    every: Sequence[Fragment]
    kept: Sequence[Fragment]

    @property
    def images(self) -> int:
        """Rows of the kept fragments."""
        return sum(fragment.images for fragment in self.kept)

    @property
    def groups(self) -> list[str]:
        """Groups of the kept fragments."""
        return sorted({fragment.group for fragment in self.kept})


def plan_fragments(images: Folder, settings: Settings, where: str | None) -> Plan:
    """Return the plan of a job over a lake, without keys.

    Raises:
        ConfigError: if there are no images, or `where` keeps none.
        TableError: if a file is not an images table.
    """
    every = plan(images, settings.columns, settings.fragment_images)
    keep = parse_where(where)
    kept = [fragment for fragment in every if keep(keys_of(fragment))]
    if not kept:
        raise ConfigError(
            f"--where {where!r} keeps none of {len(every)} fragments of {images.root}"
        )
    return Plan(every, kept)


def keyed(plan: Plan, settings_digests: Mapping[str, str], otherwise: str) -> Plan:
    """Return the plan with keys; the digest is the group's, or `otherwise` where it has none."""
    by_fragment = {f: f.keyed(settings_digests.get(f.group, otherwise)) for f in plan.every}
    return Plan([by_fragment[f] for f in plan.every], [by_fragment[f] for f in plan.kept])


def output_digest(settings: Settings) -> str:
    """Return the digest of all settings that a part's bytes depend on, besides the model.

    Runner, workers, `batch_size` and `max_failed` are not among them.
    """
    return digest(
        {
            "image": settings.image.model_dump(mode="json"),
            "score": settings.score.model_dump(mode="json"),
            "columns": settings.columns.model_dump(mode="json"),
            "fragment_images": settings.fragment_images,
        }
    )


def training_selections(
    images: Folder, fragments: Sequence[Fragment], columns: ColumnSettings
) -> dict[str, Selection]:
    """Return which rows of each group a fit uses: the good ones, or all where none has a label.

    Reads the label column of every file.
    """
    labelled: set[str] = set()
    for path in sorted({fragment.path for fragment in fragments}):
        with images.open(path) as handle:
            file = pq.ParquetFile(handle)
            if columns.label not in file.schema_arrow.names:
                continue
            table = file.read(columns=[columns.group, columns.label])
        known = table.filter(table.column(columns.label).is_valid())
        labelled.update(known.column(columns.group).unique().to_pylist())
    groups = sorted({fragment.group for fragment in fragments})
    return {group: "good" if group in labelled else "unlabelled" for group in groups}
