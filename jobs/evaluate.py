"""evaluate: scores/ + labels and masks -> metrics."""

import json
from collections.abc import Mapping
from typing import Annotated, cast

import typer

from patchlake.jobs import options
from patchlake.jobs.console import Terminal, say, say_reading, show_table

# Of a group, or the mean: rates, None where there is nothing to compare, and counts.
Rates = Mapping[str, float | int | None]
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
    say_reading(scores)
    from patchlake.pipeline.driver import evaluate as evaluating
    from patchlake.pipeline.storage.folder import Folder

    found = evaluating.run(images, scores, where, settings, Terminal())
    by_group = cast("dict[str, Rates]", found)
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


def _mean(by_group: Mapping[str, Rates]) -> Rates:
    """Return the mean of each rate over the groups that have it, and the sums of the counts."""
    mean: dict[str, float | int | None] = {}
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
