"""evaluate: scores/ + labels and masks -> metrics."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import typer

from patchlake.jobs import options
from patchlake.jobs.console import Cell, Terminal, say, say_reading, show_table

# Of a group, or the mean: rates with their intervals, None where there is nothing to compare, and
# counts.
Rates = Mapping[str, float | int | tuple[float, float] | None]
_CURVES = ("image_auroc", "pixel_auroc", "aupro", "aupro_5", "aupimo", "seg_f1")
_VERDICTS = ("recall", "false_alarm_rate", "precision", "f1")
_RATES = (*_CURVES, "region_hit_rate", *_VERDICTS)
_CONFUSION = ("true_positives", "false_positives", "false_negatives", "true_negatives")
_JUDGED = (*_CONFUSION, "parts", "no_verdict")
_PIXELS = ("pixel_true_positives", "pixel_false_positives", "pixel_false_negatives")
_REGIONS = ("defect_regions", "defect_regions_hit")
_MASKS = ("masks_missing", "masks_unreadable", "masks_empty", "masks_resized")
# Images compared, those of them that are defective, and images that are left out.
_IMAGES = ("images", "anomalous", "trained_on", "train_split", "unlabelled", "reviewed")
_COUNTS = (*_JUDGED, *_PIXELS, *_REGIONS, *_IMAGES, *_MASKS)


def evaluate(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table with labels.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Its score table.")],
    where: options.Where = None,
    reviews: Annotated[
        str | None,
        typer.Option(
            metavar="REVIEWS", help="Reviews table or CSV whose decisions replace the labels."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Print image AUROC, pixel AUROC and AUPRO of the labelled images that are not for training.

    Also AUPRO to 5 % false positives, and AUPIMO. Where the scores have verdicts, how right they
    are: recall, false alarms, precision and F1 of the images, and F1 of the pixels (seg_f1).

    Left out, and counted, are images that the model was trained on, and of a split to train on. Of
    the settings storage.* counts, and what columns.* say; the others are those of the run.
    """
    settings = options.read_settings(config, assignments, {})
    say_reading(scores)
    from patchlake.pipeline.driver import evaluate as evaluating
    from patchlake.pipeline.storage.folder import Folder

    found = evaluating.run(images, scores, where, settings, Terminal(), reviews=reviews)
    by_group = cast("dict[str, Rates]", found)
    mean = _mean(by_group)
    if as_json:
        say(json.dumps({"groups": by_group, "mean": mean}, indent=1))
        return
    folder = Folder.at(scores).root
    every = [*by_group.items(), ("mean", mean)]
    # What else was left out is said in words, and in --json.
    columns = (*_CURVES, "images", "anomalous", "trained_on")
    # Names are broken, so that a row fits into 100 columns.
    header = ["group", *(name.replace("_", "\n") for name in columns)]
    rows = [[name, *(_shown(values[key]) for key in columns)] for name, values in every]
    show_table(folder, header, rows)
    if any(values["parts"] for values in by_group.values()):
        header = ["group", "recall", "false\nalarms", "precision", "F1", "TP / FP / FN / TN"]
        show_table("verdicts, with intervals of 95 %", header, _verdict_rows(every))


def _verdict_rows(every: Sequence[tuple[str, Rates]]) -> list[list[Cell]]:
    """Return a row of each group that has verdicts, and of the mean."""
    return [
        [
            name,
            *(_with_interval(values, rate) for rate in _VERDICTS),
            " / ".join(str(values[count]) for count in _CONFUSION),
        ]
        for name, values in every
        if values["parts"]
    ]


def _with_interval(values: Rates, name: str) -> Cell:
    """Return `0.62` and below it `[0.55, 0.69]`: four of them in one line are too wide."""
    value, interval = values[name], values.get(f"{name}_interval")
    if not isinstance(value, float):
        return "-"
    if not isinstance(interval, tuple):
        return f"{value:.2f}"
    return f"{value:.2f}", f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _mean(by_group: Mapping[str, Rates]) -> Rates:
    """Return the mean of each rate over the groups that have it, and the sums of the counts."""
    mean: dict[str, float | int | tuple[float, float] | None] = {}
    for name in _RATES:
        known = [value for group in by_group.values() if isinstance(value := group[name], float)]
        mean[name] = sum(known) / len(known) if known else None
    for name in _COUNTS:
        counts = [value for group in by_group.values() if isinstance(value := group[name], int)]
        mean[name] = sum(counts)
    return mean


def _shown(value: float | tuple[float, float] | None) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if isinstance(value, float) else "-"
