"""mutual: images/ -> model/ (of the images themselves) -> scores/, without labels.

The model is made of IMAGES, or they join it, and then they are scored with it: each is compared
with others, and with neither itself nor its own part (`methods.musc`).
"""

import logging

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import fit as fitting
from patchlake.pipeline.driver import score as scoring
from patchlake.pipeline.driver import update as updating
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.preview import Preview
from patchlake.pipeline.errors import ConfigError, FragmentsFailed
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import Mutual
from patchlake.pipeline.model_store import models
from patchlake.pipeline.record.runs import Summary
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

_METHOD = "musc"


def run(
    images: str,
    model: str,
    scores: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
) -> Summary:
    """Let the images join the model, score them with it, and return the summary of that.

    A group with too few images is not in the model: its rows have status `no_model`, as of a score.

    Args:
        images: Images table.
        model: Of an earlier night, or not there yet.
        scores: Score table.
        settings: Of all three; `method.name` and `fit_on` are this verb's.
        execution: Where it runs.
        where: Which rows join, and which fragments are scored.

    Raises:
        ConfigError: if the model is of another method or of good images alone.
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors; without a
            `result` if no group has enough images, and nothing is scored.
    """
    settings = settings_of(settings)
    try:
        if _is_there(model, settings):
            updating.run(images, model, settings, execution, where=where)
        else:
            fitting.run(images, model, settings, execution, where=where)
    except FragmentsFailed as failed:
        found = failed.result
        if not isinstance(found, models.Manifest) or not found.groups:
            # Nothing is scored: what the fit came to is not what this verb returns.
            raise FragmentsFailed(str(failed)) from failed
        # Said once more by the rows, or by the score: the other groups are to be scored.
        log.warning("%s", failed)
    return scoring.run(images, model, scores, settings, execution, where=where)


def preview(
    images: str,
    model: str,
    scores: str,
    settings: Settings,
    execution: Execution,
    where: str | None = None,
) -> Preview:
    """Return what the score by the model would do, or where there is none what its fit would."""
    settings = settings_of(settings)
    if _is_there(model, settings):
        return scoring.preview(images, [model], scores, settings, execution, where)
    log.info(
        "there is no model yet, so the cost of its fit is estimated: once it is there, --dry-run "
        "measures the score, which is dearer"
    )
    return fitting.preview(images, model, settings, execution, where)


def settings_of(settings: Settings) -> Settings:
    """Return the settings with the method and the rows of this verb.

    Raises:
        ConfigError: if another method is named.
    """
    asked = settings.method
    if "name" not in asked.model_fields_set:
        asked = asked.model_copy(update={"name": _METHOD})
    if not isinstance(build(asked.name, asked.options()), Mutual):
        raise ConfigError(
            f"method.name is '{asked.name}', and images are compared with one another by "
            f"'{_METHOD}' alone: leave it out, or use `patchlake fit` and `patchlake score`"
        )
    return settings.model_copy(update={"method": asked, "fit_on": "all"})


def _is_there(model: str, settings: Settings) -> bool:
    """Return whether there is a model, which images can join. Raises `ConfigError`."""
    folder = Folder.at(model, settings.storage)
    if not folder.exists(models.MANIFEST):
        return False
    found = models.read_manifest(folder)
    if found.method != _METHOD:
        raise ConfigError(
            f"{folder.root} holds a model of method '{found.method}', and images are compared with "
            f"one another by '{_METHOD}': name another MODEL"
        )
    if found.settings.fit_on != "all":
        raise ConfigError(
            f"{folder.root} was fitted on good images alone, and `patchlake mutual` would let all "
            "images join it: name another MODEL, or score with it by `patchlake score`"
        )
    return True
