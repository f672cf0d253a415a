"""status: what is done, failed and pending, from the files alone."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import pyarrow as pa
import typer
from pydantic import TypeAdapter

from patchlake.jobs import options
from patchlake.jobs.changes import Changed, say_changed
from patchlake.jobs.console import printable, say, show_table
from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.corpus import embedded_keys
from patchlake.pipeline.model_store import models
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.pulse import Pulse, Speed, State, read_pulses, state_of
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.score_table.expiry import expired_keys
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight

# Of why a fragment failed, characters that a line shows; --json has the rest.
_SHOWN = 500


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


def status(
    folder: Annotated[str, typer.Argument(metavar="SCORES|MODEL", help="Where the runs are.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Show what is done, failed and pending, and of a model, images that it should not have.

    Those are images whose label or split has changed since, or that are gone from the lake; reads
    the narrow columns of its files that are new or changed. Of the settings only storage.* counts.
    """
    storage = options.read_settings(config, assignments, {}).storage
    states = _with_changed(Folder.at(folder, storage), read(folder, storage))
    if as_json:
        say(TypeAdapter(list[RunStatus]).dump_json(states, indent=1).decode())
        return
    header = ["run", "verb", "started", "state", "fragments", "done", "expired"]
    header += ["failed", "pending", "images"]
    rows = [
        [
            s.run,
            s.verb,
            s.started_at[:19],
            s.state,
            str(s.fragments),
            str(s.done),
            str(s.expired),
            str(s.failed),
            str(s.pending),
            f"{s.images_done} of {s.images}",
        ]
        for s in states
    ]
    show_table(Folder.at(folder).root, header, rows)
    steps = [
        [s.run, s.verb, group, str(c.added), str(c.withdrawn), (c.parent or "")[:12], c.digest[:12]]
        for s in states
        for group, c in s.changes.items()
    ]
    if steps:
        header = ["run", "verb", "group", "added", "withdrawn", "parent", "model"]
        show_table("lineage", header, steps)
    for state in states:
        if state.state != "finished":
            say(f"{state.run} {printable(_told(state))}")
        for key, error in state.failures.items():
            say(f"{state.run} {printable(key)}: {printable(error[:_SHOWN])}")


def _told(status: RunStatus) -> str:
    """Return what has become of a run without a summary, in words."""
    if status.state == "stopped":
        return f"stopped: {status.stopped}"
    if status.state == "dead":
        return f"ended without a message; its last sign of life: {status.seen_at}"
    speed = status.speed
    if speed is None or speed.seconds_left is None:
        return "is running, and has no image done yet"
    stages = ", ".join(f"{n} {seconds:.0f} s" for n, seconds in speed.stage_seconds.items())
    return (
        f"is running: {speed.images_per_second:.1f} images a second, {speed.seconds_left:.0f} s "
        f"left, {speed.error_rows} error rows ({stages} of all workers)"
    )


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


def _with_changed(target: Folder, states: list[RunStatus]) -> list[RunStatus]:
    """Return the runs, the last step of a model with its images that have changed since."""
    if not target.exists(models.MANIFEST):
        return states
    manifest = models.read_manifest(target)
    changed = say_changed(target, manifest)
    return [replace(s, changed=changed) if s.run == manifest.run else s for s in states]


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
