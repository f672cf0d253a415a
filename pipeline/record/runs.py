"""A run's record: what was planned, what failed, how it ended. `status` needs nothing else.

_runs/<run>/run.json        written first, once: identity, and the time its rows carry
_runs/<run>/plan.arrow      the fragments
_runs/<run>/failed/<key>.json
_runs/<run>/summary.json    written last
"""

import hashlib
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import AwareDatetime, BaseModel, ConfigDict

from patchlake.pipeline.config import RecordedSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import or_none, read_json, reading

# Names the node of a worker process, where its runner knows better than the machine's name.
NODE_VARIABLE = "PATCHLAKE_NODE"

_BEGUN = (
    "it holds the time that the run's rows carry: restore it, or remove it, and what is not done "
    "yet gets a new time"
)
_FORGET = "restore it, or remove it to forget that run"
_SUMMED_UP = "the command of that run writes it again"

LIBRARIES = ("patchlake", "torch", "timm", "numpy", "pyarrow", "faiss-cpu", "pillow", "ray")


def library_versions() -> dict[str, str]:
    """Return the versions of what results can depend on."""
    return {name: version(name) for name in LIBRARIES}


def here() -> str:
    """Return the name of the node that this process runs on."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()


class RunRecord(BaseModel):
    """The identity of a run, written once. Equal inputs and settings give an equal `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    verb: str
    images: str
    where: str | None
    # Of the score table or the fit: model and output settings, or the fit's settings.
    version: str
    started_at: AwareDatetime
    settings: RecordedSettings
    # Folders of the models that a score is by. Records of before it was kept have none.
    models: tuple[str, ...] = ()
    # Of a score: group -> (height, width) of the first model's inputs, where each has its own.
    shapes: dict[str, tuple[int, int]] = {}


class Summary(BaseModel):
    """How a run ended, for people (`status`) and machines (`summary.json`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    verb: str
    finished_at: AwareDatetime
    # Of the command that wrote this: 0, or 3. None: it was written before this was kept.
    exit_code: int | None = None
    fragments: int
    # Of these, found done when the run was started (again).
    already_done: int
    failed_fragments: dict[str, str]
    # Path in IMAGES -> why the file cannot be read: how many fragments it has is not known.
    damaged_files: dict[str, str] = {}
    # Images of the whole plan; of what this start did, by status; and of what earlier starts of
    # this run did.
    images: int
    statuses: dict[str, int]
    earlier_statuses: dict[str, int] = {}
    duplicate_image_ids: int
    seconds: float
    stage_seconds: dict[str, float]
    # Stage -> node -> fragments that passed it there, in this start.
    nodes: dict[str, dict[str, int]] = {}
    removed_parts: list[str]
    groups: dict[str, str]
    libraries: dict[str, str]
    settings: RecordedSettings
    parts: list[str]

    @property
    def error_rows(self) -> int:
        """Rows without a score."""
        counted = [*self.statuses.items(), *self.earlier_statuses.items()]
        return sum(count for status, count in counted if status != "ok")


@dataclass(frozen=True)
class Run:
    """The folder of one run under SCORES or MODEL."""

    folder: Folder
    record: RunRecord
    # Whether it was begun before, and how it ended then, if it did.
    is_adopted: bool = False
    previous: Summary | None = None

    def name(self, file: str = "") -> str:
        """Return the name of a file of the run, relative to SCORES or MODEL."""
        return f"_runs/{self.record.run}/{file}"

    def fail(self, key: str, message: str) -> None:
        """List a fragment as failed."""
        text = FailedFragment(key=key, error=message).model_dump_json(indent=1)
        self.folder.write(self.name(f"failed/{key}.json"), text.encode())

    def finish(self, summary: Summary) -> None:
        """Write the summary: the run is over."""
        self.folder.write(self.name("summary.json"), summary.model_dump_json(indent=1).encode())


class FailedFragment(BaseModel):
    """One file under `failed/`."""

    key: str
    error: str


def begin(folder: Folder, record: RunRecord, fragments: Fragments) -> Run:
    """Start a run, or adopt the one of the same identity with its stored time.

    Failures of an earlier start are forgotten: those fragments are tried again. So is a summary
    that cannot be read: it is written again.

    Raises:
        ConfigError: if the record of the one that is adopted is damaged, or of another run.
    """
    run = Run(folder, record)
    if not folder.create(run.name("run.json"), record.model_dump_json(indent=1).encode()):
        stored = read_json(folder, run.name("run.json"), RunRecord, _BEGUN)
        if _identity(stored) != _identity(record):
            raise ConfigError(
                f"{folder.path(run.name('run.json'))} is of run {_identity(stored)}, not of "
                f"{_identity(record)}; {_BEGUN}"
            )
        previous = or_none(lambda: _summary(folder, run.name()))
        run = Run(folder, stored, is_adopted=True, previous=previous)
    # One listing. Also of a run that is new: who removes a damaged run.json may leave the rest.
    left = set(folder.names(run.name().rstrip("/")))
    if any(name.startswith(run.name("failed/")) for name in left):
        folder.remove(run.name("failed"), recursive=True)
    with reading(folder.path(run.name("summary.json")), "remove it"):
        # On a disk something else may have its name, such as an empty folder, which is not listed.
        if run.name("summary.json") in left or folder.is_local:
            folder.remove(run.name("summary.json"))
    fragments.write(folder, run.name("plan.arrow"))
    return run


def _identity(record: RunRecord) -> tuple[str, ...]:
    return record.run, record.verb, record.version


def identify(images: Folder, version_digest: str, where: str | None, fragments: Fragments) -> str:
    """Return a run's name: the same work has the same one.

    It is the `config.digest` of the four, with the keys of the fragments, without a list of them.
    """
    name = hashlib.sha256(f'{{"images":{json.dumps(images.root)},"keys":['.encode())
    comma = ""
    for chunk in fragments.keys.chunks:
        if len(chunk):
            name.update(
                comma.encode() + json.dumps(chunk.to_pylist())[1:-1].replace(" ", "").encode()
            )
            comma = ","
    rest = f'],"version":{json.dumps(version_digest)},"where":{json.dumps(where)}}}'
    name.update(rest.encode())
    return name.hexdigest()[:12]


@dataclass(frozen=True)
class RunState:
    """What the files of a run say."""

    record: RunRecord
    fragments: Fragments
    failed: dict[str, str]
    summary: Summary | None


def read_records(folder: Folder) -> list[RunRecord]:
    """Return the records of all runs of a SCORES or MODEL, the newest last; no plan is read.

    Raises:
        ConfigError: if a record cannot be read; it names the file.
    """
    records = []
    for run in folder.folders("_runs"):
        with suppress(FileNotFoundError):
            records.append(read_json(folder, f"_runs/{run}/run.json", RunRecord, _FORGET))
    return sorted(records, key=lambda record: record.started_at)


def read_planned(folder: Folder, record: RunRecord) -> dict[str, str]:
    """Return the files of a run's plan, with the version that each had then."""
    files = _plan(folder, f"_runs/{record.run}/").table.group_by(["path", "version"]).aggregate([])
    return dict(zip(*(files.column(n).to_pylist() for n in ("path", "version")), strict=True))


def read_runs(folder: Folder) -> list[RunState]:
    """Return all runs of a SCORES or MODEL, the newest last.

    Raises:
        ConfigError: if a record, a plan or a summary cannot be read; it names the file.
    """
    names = [entry.name for entry in folder.find("_runs")]
    states = []
    for run in sorted({"/".join(name.split("/")[:2]) + "/" for name in names}):
        name = f"{run}run.json"
        # Where it was removed the run is forgotten.
        if name not in names and not folder.exists(name):
            continue
        record = read_json(folder, name, RunRecord, _FORGET)
        failures = [n for n in names if n.startswith(f"{run}failed/")]
        failed = [_failed(folder, n) for n in failures]
        summary = _summary(folder, run)
        fragments = _plan(folder, run)
        by_key = {failure.key: failure.error for failure in failed}
        states.append(RunState(record, fragments, by_key, summary))
    return sorted(states, key=lambda state: state.record.started_at)


def _plan(folder: Folder, run: str) -> Fragments:
    # None: it was killed before it wrote one, and has done nothing.
    try:
        return Fragments.read(folder, f"{run}plan.arrow")
    except FileNotFoundError:
        return Fragments.of([])


def _failed(folder: Folder, name: str) -> FailedFragment:
    # Its name says which fragment: that it failed, and is tried again, is all that matters.
    try:
        return read_json(folder, name, FailedFragment, "the same command tries the fragment again")
    except ConfigError as error:
        return FailedFragment(key=name.rpartition("/")[2].partition(".")[0], error=str(error))


def _summary(folder: Folder, run: str) -> Summary | None:
    # Read at once, not after a look: a driver that starts again removes it.
    try:
        return read_json(folder, f"{run}summary.json", Summary, _SUMMED_UP)
    except FileNotFoundError:
        return None


def now() -> datetime:
    """Return the time, in UTC, to the microsecond that the tables keep."""
    return datetime.now(UTC)
