"""evaluate: scores/ + labels and masks -> metrics."""

import logging
from typing import TypedDict

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.judging import left_out, require_meaning, say_what_counts
from patchlake.pipeline.driver.observer import Observer, Silent
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.evaluation.verdicts import Interval
from patchlake.pipeline.images.geometry import geometry_of
from patchlake.pipeline.lake.plan import plan_fragments, read_cuts
from patchlake.pipeline.lake.reviewed import ReviewedRows, reviewed
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.record import runs
from patchlake.pipeline.reviews.given import read_given
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.stages.compare import GroupMetrics, ScoreTable, add_part
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.where.condition import read_where

log = logging.getLogger(__name__)


class Metrics(TypedDict):
    """Of one group. A rate is None where there is nothing to compare.

    What is at the threshold of the score table is None, and counts are 0, where it has none. An
    interval is one of 95 %, (low, high), by a bootstrap over parts: images with the same `part_id`,
    and any image without one by itself (`pipeline.evaluation.verdicts`).
    """

    image_auroc: float | None
    pixel_auroc: float | None
    # Area under the per-region overlap, to a false positive rate of 0.3, and of 0.05.
    aupro: float | None
    aupro_5: float | None
    # Area under the per-image overlap, over the logarithm of the false positive rate of good
    # images from 1e-5 to 1e-4. It needs 100,000 pixels of good images: two of them.
    aupimo: float | None
    # F1 of the pixels above the pixel threshold, in images that are called anomalous.
    seg_f1: float | None
    # Of the defects' regions, the share with such a pixel.
    region_hit_rate: float | None
    # Share of the anomalous images that are called so, and of the good ones that are.
    recall: float | None
    recall_interval: Interval | None
    false_alarm_rate: float | None
    false_alarm_rate_interval: Interval | None
    # Share of those called anomalous that are. It hangs on how many there are of each.
    precision: float | None
    precision_interval: Interval | None
    f1: float | None
    f1_interval: Interval | None
    # Images with a verdict, by it and their label; parts that they are of; images without one.
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    parts: int
    no_verdict: int
    # What `seg_f1` and `region_hit_rate` are made of: pixels of the frame, and regions.
    pixel_true_positives: int
    pixel_false_positives: int
    pixel_false_negatives: int
    defect_regions: int
    defect_regions_hit: int
    # Images compared, and those of them that are defective.
    images: int
    anomalous: int
    # Of the defective ones, masks that the pixel metrics lack, and why.
    masks_missing: int
    masks_unreadable: int
    masks_empty: int
    # Of another size than their image, and stretched over it.
    masks_resized: int
    # Images that are left out, and why.
    trained_on: int
    train_split: int
    unlabelled: int
    # Of the images compared, those whose reviews say what they are.
    reviewed: int


def run(
    images: str,
    scores: str,
    where: str | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
    *,
    reviews: str | None = None,
) -> dict[str, Metrics]:
    """Return the metrics of each group, by name.

    Args:
        images: The lake.
        scores: Its score table.
        where: Which rows count.
        settings: Of which `storage` and `columns` count.
        observer: Is told how far it is.
        reviews: A reviews table, or a file of decisions: those stand in the place of labels.

    Raises:
        ConfigError: if there is no score, no image to compare, or a split or label has no meaning.
        TableError: if reviews cannot be read.
    """
    asked = settings or Settings()
    storage = asked.storage
    lake, table = open_lake(images, storage), Folder.at(scores, storage)
    Preflight([lake, table], roles=[Use(lake, "images"), Use(table, "scores")]).here()
    record = _newest(table)
    parts.require_source(table, lake)
    columns = asked.columns.over(record.settings.columns)
    settings = record.settings.model_copy(update={"columns": columns})
    image = settings.image
    geometry = geometry_of(image.resize, image.crop, record.shapes, is_cut=image.tile is not None)
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
    scored = ScoreTable(table, lake.root, _reviewed(source, planned, reviews))
    with (observer or Silent()).task("evaluate", len(found), "parts") as advance:
        for part, fragment in sorted(found.items()):
            if fragment is not None:
                add_part(metrics, source, scored, part, fragment)
            advance(1)
    require_meaning(metrics, columns)
    labelled = {group: m for group, m in sorted(metrics.items()) if m.scores}
    if not labelled:
        left = (
            ", ".join(reason for m in metrics.values() if (reason := left_out(m)))
            or "no row at all"
        )
        raise ConfigError(
            f"{table.root} has no scored image with a label and a split other than train that its "
            f"model was not trained on: nothing to compare with (left out: {left}); labels can "
            "come later, by `patchlake ingest` of a manifest with columns uri and label"
        )
    say_what_counts(metrics)
    return {group: _metrics(group, m) for group, m in labelled.items()}


def _reviewed(source: Source, planned: Fragments, reviews: str | None) -> ReviewedRows | None:
    """Return what reviews say of the images, after saying which of them say nothing."""
    if reviews is None:
        return None
    found = reviewed(source, planned, read_given(reviews, source.images.storage))
    found.say_left_out()
    return found


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
    _say_what_is_missing(name, group)
    rates, confusion, segments = group.verdicts.rates(), group.verdicts.confusion(), group.segments
    return {
        "image_auroc": group.image_auroc(),
        "pixel_auroc": group.pixels.auroc(),
        "aupro": group.pixels.aupro(),
        "aupro_5": group.pixels.aupro(0.05),
        "aupimo": group.overlap.aupimo(),
        "seg_f1": segments.f1(),
        "region_hit_rate": segments.region_hit_rate(),
        "recall": rates.recall.value,
        "recall_interval": rates.recall.interval,
        "false_alarm_rate": rates.false_alarm_rate.value,
        "false_alarm_rate_interval": rates.false_alarm_rate.interval,
        "precision": rates.precision.value,
        "precision_interval": rates.precision.interval,
        "f1": rates.f1.value,
        "f1_interval": rates.f1.interval,
        "true_positives": confusion.true_positives,
        "false_positives": confusion.false_positives,
        "false_negatives": confusion.false_negatives,
        "true_negatives": confusion.true_negatives,
        "parts": group.verdicts.parts,
        "no_verdict": group.unjudged,
        "pixel_true_positives": segments.true_positives,
        "pixel_false_positives": segments.false_positives,
        "pixel_false_negatives": segments.false_negatives,
        "defect_regions": segments.regions,
        "defect_regions_hit": segments.regions_hit,
        "images": len(group.scores),
        "anomalous": sum(group.is_anomalous),
        "masks_missing": group.unmasked,
        "masks_unreadable": group.unreadable_masks,
        "masks_empty": group.empty_masks,
        "masks_resized": group.resized_masks,
        "trained_on": group.trained_on,
        "train_split": group.train_split,
        "unlabelled": group.unlabelled,
        "reviewed": group.reviewed,
    }


def _say_what_is_missing(name: str, group: GroupMetrics) -> None:
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
    if group.unjudged and group.verdicts.parts:
        log.warning(
            "group '%s': %d images compared have no verdict, since their model has no threshold",
            name,
            group.unjudged,
        )
