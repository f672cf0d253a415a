"""evaluate: scores/ + labels and masks -> metrics."""

import json
from typing import Annotated

import typer

from jobs import options
from jobs.console import log, progress, say, show_table
from pipeline.config import Settings, StorageSettings
from pipeline.errors import ConfigError
from pipeline.images.geometry import Geometry
from pipeline.lake import parts, runs
from pipeline.lake.folder import Folder
from pipeline.lake.listing import open_lake
from pipeline.lake.where import read_where
from pipeline.stages.compare import GroupMetrics, add_part
from pipeline.stages.plan import plan_fragments, read_cuts
from pipeline.stages.preflight import Preflight
from pipeline.stages.source import Source

Metrics = dict[str, float | int | None]
_RATES = ("image_auroc", "pixel_auroc", "aupro")


def evaluate(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table with labels.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Its score table.")],
    where: options.Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Print image AUROC, pixel AUROC and AUPRO of the labelled images that are not for training.

    Of the settings only storage.* counts: the others are those of the run.
    """
    storage = options.read_settings(config, assignments, {}).storage
    by_group = run(images, scores, where, storage)
    mean = _mean(by_group)
    if as_json:
        say(json.dumps({"groups": by_group, "mean": mean}, indent=1))
        return
    header = ["group", *_RATES, "images", "anomalous"]
    rows = [
        [name, *(_shown(values[key]) for key in header[1:])] for name, values in by_group.items()
    ]
    rows.append(["mean", *(_shown(mean[key]) for key in header[1:])])
    show_table(Folder.at(scores).root, header, rows)


def run(
    images: str, scores: str, where: str | None = None, storage: StorageSettings | None = None
) -> dict[str, Metrics]:
    """Return the metrics of each group, by name.

    Raises:
        ConfigError: if there is no score, or no labelled image among them.
    """
    storage = storage or StorageSettings()
    lake, table = open_lake(images, storage), Folder.at(scores, storage)
    Preflight([lake, table]).here()
    record = _newest(table)
    parts.bind_source(table, lake)
    settings: Settings = record.settings
    geometry = Geometry(settings.image.resize, settings.image.crop)
    source = Source(lake, settings.columns, settings.image, geometry, read_where(where))
    done = parts.committed(table, record.version)
    planned = plan_fragments(lake, settings, where, read_cuts(table, settings)).sound().kept
    by_place = {(f.path, f.row_groups, f.start, f.group): f for f in planned}
    found = {
        done[f.key]: by_place.get((f.path, f.row_groups, f.start, f.group))
        for state in runs.read_runs(table)
        if state.record.version == record.version
        for f in state.fragments.with_keys(done.sorted_keys)
    }
    metrics: dict[str, GroupMetrics] = {}
    with progress("evaluate", len(found), "parts") as advance:
        for part, fragment in sorted(found.items()):
            if fragment is not None:
                add_part(metrics, source, table, part, fragment)
            advance(1)
    labelled = {group: m for group, m in sorted(metrics.items()) if m.scores}
    if not labelled:
        raise ConfigError(
            f"{table.root} has no scored image with a label and a split other than train: "
            "nothing to compare with"
        )
    return {group: _metrics(group, m) for group, m in labelled.items()}


def _newest(table: Folder) -> runs.RunRecord:
    records = [state.record for state in runs.read_runs(table) if state.record.verb == "score"]
    if not records:
        raise ConfigError(f"{table.root} holds no scores; run `patchlake score` first")
    versions = {record.version for record in records}
    if len(versions) > 1:
        log.warning(
            "%s holds %d versions; this is the newest, %s",
            table.root,
            len(versions),
            records[-1].version,
        )
    return records[-1]


def _metrics(name: str, group: GroupMetrics) -> Metrics:
    if group.unscored or group.unmasked:
        log.warning(
            "group '%s': %d labelled images have no score, %d anomalous ones no mask",
            name,
            group.unscored,
            group.unmasked,
        )
    return {
        "image_auroc": group.image_auroc(),
        "pixel_auroc": group.pixels.auroc(),
        "aupro": group.pixels.aupro(),
        "images": len(group.scores),
        "anomalous": sum(group.is_anomalous),
    }


def _mean(by_group: dict[str, Metrics]) -> Metrics:
    """Return the mean of each rate over the groups that have it, and the sums of the counts."""
    mean: Metrics = {}
    for name in _RATES:
        known = [value for group in by_group.values() if (value := group[name]) is not None]
        mean[name] = sum(known) / len(known) if known else None
    for name in ("images", "anomalous"):
        mean[name] = sum(int(group[name] or 0) for group in by_group.values())
    return mean


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
