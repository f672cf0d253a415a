"""status: what is done, failed and pending, from the files alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say, show_table
from patchlake.pipeline.shown import printable

if TYPE_CHECKING:
    from patchlake.pipeline.driver.status import RunStatus

# Of why a fragment failed, characters that a line shows; --json has the rest.
_SHOWN = 500


def status(
    folder: Annotated[str, typer.Argument(metavar="SCORES|MODEL", help="Where the runs are.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    reviews: Annotated[
        str | None,
        typer.Option(metavar="REVIEWS", help="Of a MODEL: what it has not learnt of reviews."),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
) -> None:
    """Show what is done, failed and pending, and of a model, images that it should not have.

    Those are images whose label or split has changed since, or that are gone from the lake; reads
    the narrow columns of its files that are new or changed. Of the settings only storage.* counts.
    """
    storage = options.read_settings(config, assignments, {}).storage
    from pydantic import TypeAdapter

    from patchlake.pipeline.driver.status import RunStatus, read, with_changed, with_reviews
    from patchlake.pipeline.storage.folder import Folder

    target = Folder.at(folder, storage)
    states = with_changed(target, read(folder, storage))
    if reviews is not None:
        states = with_reviews(target, states, reviews)
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
    show_table(target.root, header, rows)
    steps = [
        [s.run, s.verb, group, str(c.added), str(c.withdrawn), (c.parent or "")[:12], c.digest[:12]]
        for s in states
        for group, c in s.changes.items()
    ]
    if steps:
        header = ["run", "verb", "group", "added", "withdrawn", "parent", "model"]
        show_table("lineage", header, steps)
    _show_reviews(states)
    for state in states:
        if state.state != "finished":
            say(f"{state.run} {printable(_in_words(state))}")
        for key, error in state.failures.items():
            say(f"{state.run} {printable(key)}: {printable(error[:_SHOWN])}")


def _show_reviews(states: Sequence["RunStatus"]) -> None:
    rows = [
        [
            group,
            str(c.false_alarms_not_in_model),
            str(c.withdrawn_before),
            str(c.defective_in_model),
            str(c.unsure),
            str(c.disputed),
        ]
        for s in states
        for group, c in s.reviews.items()
    ]
    if rows:
        header = ["group", "false alarms\nnot in it", "of images\nthat left"]
        header += ["defective\nin it", "unsure", "disputed"]
        show_table("reviews that the model has not learnt", header, rows)


def _in_words(status: "RunStatus") -> str:
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
