"""status: what is done, failed and pending, from the files alone."""

from dataclasses import dataclass, field, replace

import pyarrow as pa

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.partials import embedded_keys
from patchlake.pipeline.groups.reviewed import ReviewCounts
from patchlake.pipeline.model_store import models
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.pulse import Pulse, Speed, State, read_pulses, state_of
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.score_table.ledger import expired_keys
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight

# Group -> image_id -> why the lake would not train on it any more.
Changed = dict[str, dict[str, str]]


@dataclass(frozen=True)
class RunStatus:
    """One run, as its files tell it."""

    run: str
    verb: str
    # Of the command, by which a scheduler finds its own run.
    where: str | None
    started_at: str
    # finished: it wrote its summary, or published its model. running: its driver gave a sign of
    # life. stopped: the driver ended and said why. dead: it did not. After the last two the same
    # command goes on.
    state: State
    # Of the command that finished it: 0, or 3. None where there is no summary.
    exit_code: int | None
    # When the driver gave the last sign of life, and why it ended, if it said so.
    seen_at: str | None
    stopped: str | None
    # Of this start of the driver, as of then.
    speed: Speed | None
    fragments: int
    done: int
    # Their parts were removed by --expire; they are not scored again.
    expired: int
    failed: int
    pending: int
    images: int
    images_done: int
    failures: dict[str, str]
    # Of a run that is a step of a model's lineage: what it did to each group.
    changes: dict[str, models.Change]
    # Of the last step of a model: group -> image_id -> why the lake would not train on it any more.
    changed: Changed = field(default_factory=dict)
    # Likewise, if reviews are asked for: group -> what the model has not learnt of them.
    reviews: dict[str, ReviewCounts] = field(default_factory=dict)


def read(folder: str, storage: StorageSettings | None = None) -> list[RunStatus]:
    """Return the status of every run of a SCORES or MODEL, the newest last.

    Raises:
        ConfigError: if there is none.
    """
    target = Folder.at(folder, storage or StorageSettings())
    Preflight([target]).here()
    states = runs.read_runs(target)
    if not states:
        raise ConfigError(f"{target.root} holds no run of patchlake")
    pulses = read_pulses(target, [state.record.run for state in states])
    steps = {step.run: step.groups for step in _lineage(target)}
    return [
        _status(target, state, pulses.get(state.record.run), steps.get(state.record.run, {}))
        for state in states
    ]


def with_changed(target: Folder, states: list[RunStatus]) -> list[RunStatus]:
    """Return the runs, the last step of a model with its images that have changed since."""
    if not target.exists(models.MANIFEST):
        return states
    # Imported here: a score table has no need of it, and it takes a second.
    from patchlake.pipeline.driver.changes import say_changed

    manifest = models.read_manifest(target)
    changed = say_changed(target, manifest)
    return [replace(s, changed=changed) if s.run == manifest.run else s for s in states]


def with_reviews(target: Folder, states: list[RunStatus], reviews: str) -> list[RunStatus]:
    """Return the runs, the last step of a model with what it has not learnt of reviews.

    Raises:
        ConfigError: if there is no model, or there are no reviews.
        TableError: if reviews cannot be read.
    """
    if not target.exists(models.MANIFEST):
        raise ConfigError(f"{target.root} is no model, of which alone reviews can be learnt")
    # Imported here: as above.
    from patchlake.pipeline.driver.learning import counts_of

    manifest = models.read_manifest(target)
    counts = counts_of(target, manifest, reviews)
    return [replace(s, reviews=counts) if s.run == manifest.run else s for s in states]


def _lineage(target: Folder) -> list[models.Step]:
    return models.read_manifest(target).lineage if target.exists(models.MANIFEST) else []


def _status(
    target: Folder,
    state: runs.RunState,
    pulse: Pulse | None,
    of_step: dict[str, models.Change],
) -> RunStatus:
    record = state.record
    gone = state.fragments[:0]
    if record.verb == "score":
        keys = parts.committed(target, record.version).sorted_keys
        done = state.fragments.with_keys(keys)
        gone = state.fragments.without_keys(keys)
        gone = gone.with_keys(expired_keys(target, record.version))
    elif state.summary is not None or of_step:
        # A fit's partial results go when its model is published.
        done = state.fragments.without_keys(pa.array(list(state.failed), pa.string()))
    else:
        keys = embedded_keys(target, f"_runs/{record.run}/partials/")
        done = state.fragments.with_keys(keys)
    failed_keys = pa.array(list(state.failed), pa.string())
    over = {key for some in (done, gone) for key in some.with_keys(failed_keys).keys.to_pylist()}
    failed = {key: error for key, error in state.failed.items() if key not in over}
    return RunStatus(
        run=record.run,
        verb=record.verb,
        where=record.where,
        started_at=record.started_at.isoformat(),
        state=state_of(pulse, is_finished=state.summary is not None or bool(of_step)),
        exit_code=state.summary.exit_code if state.summary else None,
        seen_at=None if pulse is None else pulse.at.isoformat(),
        stopped=None if pulse is None else pulse.stopped,
        speed=None if pulse is None else pulse.speed,
        fragments=len(state.fragments),
        done=len(done),
        expired=len(gone),
        failed=len(failed),
        pending=len(state.fragments) - len(done) - len(gone) - len(failed),
        images=state.fragments.images,
        images_done=done.images,
        failures=failed,
        changes=of_step,
    )
