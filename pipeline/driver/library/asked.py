"""What the verbs are asked with, in the words of a caller, as the driver takes it."""

import os
from collections.abc import Sequence

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.execution import Execution, RunnerName
from patchlake.pipeline.driver.observer import Observer, Silent
from patchlake.pipeline.driver.settings import effective

# A folder or file: a path, or a URI of whatever storage is known.
Uri = str | os.PathLike[str]


def as_uri(named: Uri) -> str:
    """Return a path or URI as text."""
    return os.fspath(named)


def as_uris(named: Uri | Sequence[Uri]) -> list[str]:
    """Return one path or URI, or several, as texts."""
    return [as_uri(one) for one in ([named] if isinstance(named, str | os.PathLike) else named)]


def settled(settings: Settings | None) -> Settings:
    """Return the settings that count, which are the defaults where there are none."""
    return effective(settings or Settings())


def execution_of(runner: RunnerName, address: str | None, observer: Observer | None) -> Execution:
    """Return where a job runs, and who is told how far it is."""
    return Execution(runner, address, observer or Silent())
