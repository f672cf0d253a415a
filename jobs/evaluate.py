"""evaluate: scores/ + labels and masks -> metrics."""

import json
from typing import Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import log, progress, say, show_table
from patchlake.jobs.judging import left_out, require_meaning, say_what_counts
from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.plan import plan_fragments, read_cuts
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.stages.compare import GroupMetrics, Scored, add_part
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.where.condition import read_where

Metrics = dict[str, float | int | None]
_RATES = ("image_auroc", "pixel_auroc", "aupro")
_MASKS = ("masks_missing", "masks_unreadable", "masks_empty", "masks_resized")
# Images compared, those of them that are defective, and images that are left out.
_COUNTS = ("images", "anomalous", "trained_on", "train_split", "unlabelled", *_MASKS)


def evaluate(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table with labels.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Its score table.")],
    where: options.Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Print image AUROC, pixel AUROC and AUPRO of the labelled images that are not for training.

    Left out, and counted, are images that the model was trained on, and of a split to train on. Of
    the settings storage.* counts, and what columns.* say; the others are those of the run.
    """
    settings = options.read_settings(config, assignments, {})
    by_group = run(images, scores, where, settings)
    mean = _mean(by_group)
    if as_json:
        say(json.dumps({"groups": by_group, "mean": mean}, indent=1))
        return
    # What else was left out is said in words, and in --json.
    header = ["group", *_RATES, "images", "anomalous", "trained_on"]
    rows = [
        [name, *(_shown(values[key]) for key in header[1:])] for name, values in by_group.items()
    ]
    rows.append(["mean", *(_shown(mean[key]) for key in header[1:])])
    show_table(Folder.at(scores).root, header, rows)


def run(
    images: str, scores: str, where: str | None = None, settings: Settings | None = None
) -> dict[str, Metrics]:
    """Return the metrics of each group, by name.

    Raises:
        ConfigError: if there is no score, no image to compare, or a split or label has no meaning.
    """
    asked = settings or Settings()
    storage = asked.storage
    lake, table = open_lake(images, storage), Folder.at(scores, storage)
    Preflight([lake, table], roles=[Use(lake, "images"), Use(table, "scores")]).here()
    record = _newest(table)
    parts.require_source(table, lake)
    columns = asked.columns.over(record.settings.columns)
    settings = record.settings.model_copy(update={"columns": columns})
    geometry = Geometry(settings.image.resize, settings.image.crop)
    source = Source(lake, columns, settings.image, geometry, read_where(where))
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
    scored = Scored(table, lake.root)
    with progress("evaluate", len(found), "parts") as advance:
        for part, fragment in sorted(found.items()):
            if fragment is not None:
                add_part(metrics, source, scored, part, fragment)
            advance(1)
    require_meaning(metrics, columns)
    labelled = {group: m for group, m in sorted(metrics.items()) if m.scores}
    if not labelled:
        left = ", ".join(told for m in metrics.values() if (told := left_out(m))) or "no row at all"
        raise ConfigError(
            f"{table.root} has no scored image with a label and a split other than train that its "
            f"model was not trained on: nothing to compare with (left out: {left})"
        )
    say_what_counts(metrics)
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
    for count, fault in (
        (group.unreadable_masks, "cannot be read: they are left out of the pixel metrics"),
        (group.empty_masks, "mark nothing (all is background): left out of the pixel metrics"),
        (group.resized_masks, "are of another size than the image: they are stretched over it"),
    ):
        if count:
            log.warning("group '%s': masks of %d anomalous images %s", name, count, fault)
    return {
        "image_auroc": group.image_auroc(),
        "pixel_auroc": group.pixels.auroc(),
        "aupro": group.pixels.aupro(),
        "images": len(group.scores),
        "anomalous": sum(group.is_anomalous),
        "masks_missing": group.unmasked,
        "masks_unreadable": group.unreadable_masks,
        "masks_empty": group.empty_masks,
        "masks_resized": group.resized_masks,
        "trained_on": group.trained_on,
        "train_split": group.train_split,
        "unlabelled": group.unlabelled,
    }


def _mean(by_group: dict[str, Metrics]) -> Metrics:
    """Return the mean of each rate over the groups that have it, and the sums of the counts."""
    mean: Metrics = {}
    for name in _RATES:
        known = [value for group in by_group.values() if (value := group[name]) is not None]
        mean[name] = sum(known) / len(known) if known else None
    for name in _COUNTS:
        mean[name] = sum(int(group[name] or 0) for group in by_group.values())
    return mean


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
