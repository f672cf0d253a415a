"""What a fit or an update trains on, and what it leaves: said before anything is embedded."""

import logging
from collections.abc import Mapping
from typing import Literal

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.selection import Selection
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.survey import survey
from patchlake.pipeline.reading.fragments import Fragments

log = logging.getLogger(__name__)


def choose_rows(
    source: Source,
    fragments: Fragments,
    fit_on: Literal["good", "all"] = "good",
    *,
    is_update: bool = False,
) -> Mapping[str, Selection]:
    """Return which rows of each group are trained on, after saying which.

    Args:
        source: The lake.
        fragments: Of the groups in question.
        fit_on: The setting; with `all`, labels and splits are not read.
        is_update: Whether a group may bring nothing new.

    Raises:
        ConfigError: if a split has no meaning, a setting names a column of labels or splits that
            is nowhere, or, of a fit, no label of a group means good, or its labels are numbers in
            some files and words in others.
    """
    if fit_on == "all":
        log.info("every image is taken, whatever its label and split (fit_on=all)")
        return dict.fromkeys(fragments.groups, "all")
    found = survey(source, fragments)
    found.require_named(source, fragments)
    found.require_splits(source.images.root)
    fault = found.of_two_kinds() or found.without_good()
    if fault and not is_update:
        raise ConfigError(f"{source.images.root}: {fault}")
    if fault:
        log.warning("%s: %s", source.images.root, fault)
    for line in found.alike():
        log.warning("%s: %s", source.images.root, line)
    for group, selection in found.selections.items():
        if selection == "unlabelled":
            log.warning("group '%s' has no label at all: every image of it is taken as good", group)
    for line in found.lines():
        log.info("%s", line)
    return found.selections
