"""What an evaluation counts and what it leaves out, in words."""

import logging
from collections import Counter
from collections.abc import Mapping

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.selection import NUMBERS, fault_of_mixed_labels, listed
from patchlake.pipeline.stages.compare import GroupMetrics

log = logging.getLogger(__name__)

# Groups that have a line each; of more, all together have one.
_NAMED = 10


def require_meaning(metrics: Mapping[str, GroupMetrics], columns: ColumnSettings) -> None:
    """Refuse numbers and truths as labels, alone or beside words, if nobody says which is good.

    Raises:
        ConfigError: with the setting that says so.
    """
    for name, group in sorted(metrics.items()):
        labels = Counter({text: rows for (_, text), rows in group.seen.items()})
        meanings = {meant for meant, _ in group.seen}
        if labels and meanings == {"defect"} and set(labels) <= NUMBERS:
            raise ConfigError(
                f"group '{name}': column '{columns.label}' says {listed(labels)}, and "
                f"columns.good_labels is {list(columns.good_labels)}; say which means good, for "
                f"example --set columns.good_labels=[{min(labels)}]"
            )
        numbers = +group.numbers
        fault = fault_of_mixed_labels(
            Counter({text: rows for (meant, text), rows in numbers.items() if meant == "defect"}),
            Counter({text: rows for (_, text), rows in (group.seen - numbers).items()}),
            columns,
            is_one_good="good" in {meant for meant, _ in numbers},
        )
        if fault:
            raise ConfigError(f"group '{name}': {fault}")


def left_out(group: GroupMetrics) -> str:
    """Return what is left out, or nothing."""
    counted = (
        (group.trained_on, "that the model was trained on"),
        (group.train_split, "of a split to train on that it was not trained on"),
        (group.unlabelled, "without a label"),
        (group.unscored, "without a score"),
    )
    return ", ".join(f"{count} {what}" for count, what in counted if count)


def say_what_counts(metrics: Mapping[str, GroupMetrics]) -> None:
    """Log what was compared, why a rate is absent, and where it is not known what to leave out."""
    groups = {f"group '{name}'": group for name, group in sorted(metrics.items())}
    if len(groups) > _NAMED:
        groups = {f"{len(groups)} groups": _together(metrics)}
    for name, group in groups.items():
        left = left_out(group)
        log.info(
            "%s: compared are good images (%s) with defective ones (%s)%s",
            name,
            listed(group.goods) or "none",
            listed(group.defects) or "none",
            f"; left out: {left}" if left else "",
        )
    for name, group in sorted(metrics.items()):
        if bool(group.goods) != bool(group.defects):
            log.warning(
                "group '%s' has no image AUROC: of the images compared none is %s; %s",
                name,
                "defective" if group.goods else "good",
                left_out(group) or "none is left out",
            )
    unknown = [name for name, group in sorted(metrics.items()) if group.is_unknown]
    if unknown:
        log.warning(
            "what the models of %d groups (%s, ...) were trained on is not known: these scores, or "
            "the models, are of an earlier patchlake; only the split decides. Score again",
            len(unknown),
            unknown[0],
        )


def _together(metrics: Mapping[str, GroupMetrics]) -> GroupMetrics:
    total = GroupMetrics()
    for group in metrics.values():
        total.goods += group.goods
        total.defects += group.defects
        for name in ("trained_on", "train_split", "unlabelled", "unscored"):
            setattr(total, name, getattr(total, name) + getattr(group, name))
    return total
