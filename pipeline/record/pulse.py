"""A driver's sign of life in the run's folder: by it `status` tells a running job from a dead one.

Replaced every `BEAT_S` seconds while the process lives, and once more with the reason when it is
stopped. Of two drivers of one run the file is that of the one that wrote last.
"""

import os
import socket
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from patchlake.pipeline.record.runs import now
from patchlake.pipeline.storage.disk import is_alive
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import read_json

BEAT_S = 15.0
# Some beats late: a store may be slow, and two machines' clocks may differ by a minute.
_SILENT_S = 120.0

_FILE = "pulse.json"
_AGAIN = "a job that runs writes it again within 15 s; remove it if none does"

State = Literal["finished", "running", "stopped", "dead"]


class Speed(BaseModel):
    """What this start of the driver has done of what it found pending."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    images_done: int
    error_rows: int
    failed_fragments: int
    images_per_second: float
    # None before the first image.
    seconds_left: float | None
    # Summed over all workers.
    stage_seconds: dict[str, float]


class Pulse(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    # Linux numbers processes up to 2**22.
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    at: AwareDatetime
    # Why the driver has ended; None while it runs.
    stopped: str | None
    speed: Speed | None


def beat(folder: Folder, run: str, speed: Speed | None, stopped: str | None = None) -> None:
    """Write a sign of life of this process, or its last."""
    pulse = Pulse(
        host=socket.gethostname(), pid=os.getpid(), at=now(), stopped=stopped, speed=speed
    )
    folder.write(_name(run), pulse.model_dump_json(indent=1).encode())


def read_pulses(folder: Folder, runs: list[str]) -> Mapping[str, Pulse]:
    """Return the last sign of life of each run that has given one.

    Raises:
        ConfigError: if one cannot be read: whether its run is alive is not known then.
    """
    found = {}
    for run in runs:
        try:
            found[run] = read_json(folder, _name(run), Pulse, _AGAIN)
        except FileNotFoundError:
            continue
    return found


def remove_pulse(folder: Folder, run: str) -> None:
    """Remove it: the run is finished, and says so itself."""
    folder.remove(_name(run))


def state_of(pulse: Pulse | None, *, is_finished: bool) -> State:
    """Return what has become of a run."""
    if is_finished:
        return "finished"
    if pulse is None:
        return "dead"
    if pulse.stopped is not None:
        return "stopped"
    is_gone = pulse.host == socket.gethostname() and not is_alive(pulse.pid)
    is_silent = (now() - pulse.at).total_seconds() > _SILENT_S
    return "dead" if is_gone or is_silent else "running"


def _name(run: str) -> str:
    return f"_runs/{run}/{_FILE}"
