"""Results of verbs as tables and lines on stdout."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar, cast

from patchlake.jobs.console import say, show_table
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.shown import counted

if TYPE_CHECKING:
    from patchlake.pipeline.config import Settings
    from patchlake.pipeline.driver.preview import Preview
    from patchlake.pipeline.model_store.models import Manifest
    from patchlake.pipeline.record.runs import Summary

R = TypeVar("R")

# Of a group's facts, in one cell of the table; all are in model.json.
_SHOWN_FACTS = 4


def and_show(call: Callable[[], R], show: Callable[[R], None]) -> None:
    """Show what a job returns, also where it then says that not all of it was done."""
    try:
        result = call()
    except FragmentsFailed as failed:
        if failed.result is not None:
            show(cast("R", failed.result))
        raise
    show(result)


def show_model(root: str, manifest: "Manifest") -> None:
    """Print a line a group."""
    rows = [
        [
            group,
            str(record.images),
            str(sum(record.unusable_images.values())),
            f"{sum(file.bytes for file in record.files) / 2**20:.1f} MiB",
            record.digest[:12],
            ", ".join(_fact(*fact) for fact in list(record.facts.items())[:_SHOWN_FACTS]),
        ]
        for group, record in manifest.groups.items()
    ]
    header = ["group", "images", "unusable", "size", "model", "facts"]
    show_table(f"{manifest.method} on {manifest.backbone.name}: {root}", header, rows)


def _fact(name: str, fact: float | str) -> str:
    return f"{name} {fact}" if isinstance(fact, str) else f"{name} {fact:.6g}"


def show_scored(scores: str, settings: "Settings", summary: "Summary") -> None:
    """Print how many images were scored, and where their rows are."""
    from patchlake.pipeline.storage.folder import Folder

    rows = [[status, str(count)] for status, count in summary.statuses.items()]
    show_table(
        f"scored {sum(summary.statuses.values())} of {summary.images} images",
        ["status", "images"],
        rows,
    )
    version = summary.parts[0].partition("/")[0] if summary.parts else "version=*"
    say(f"{Folder.at(scores, settings.storage).path(version)}/**/*.parquet")


def show_preview(found: "Preview", *, as_json: bool) -> None:
    """Print a preview on stdout."""
    if as_json:
        say(json.dumps(asdict(found), indent=1))
        return
    stages = ", ".join(f"{name} {1000 * s:.1f}" for name, s in found.seconds_per_image.items())
    rows = [
        [
            "images",
            f"{found.images} of {counted(found.groups, 'groups')} in "
            f"{counted(found.files, 'files')}",
        ],
        ["bytes", f"{found.bytes / 2**20:.1f} MiB"],
        ["fragments", str(found.fragments)],
        ["already done", str(found.fragments_done)],
        [
            "pending",
            f"{counted(found.fragments_pending, 'fragments')}, "
            f"{counted(found.images_pending, 'images')}",
        ],
        ["sample, ms an image", f"{stages or '-'} ({found.sampled_images} images, one CPU)"],
        ["estimated time", _estimated(found)],
        [
            "estimated memory",
            f"driver {found.driver_bytes / 2**20:.0f} MiB, worker {found.worker_bytes / 2**20:.0f} "
            "MiB at most",
        ],
    ]
    if found.stored_bytes:
        rows.append(["stored until published", f"{found.stored_bytes / 2**20:.1f} MiB"])
    if found.expiring_parts:
        gone = f"{len(found.expiring_parts)} parts of {found.expiring_images} images"
        rows.append(["--expire removes", gone])
    show_table(f"dry run of {found.verb}: nothing is written to {found.target}", ["", ""], rows)
    for part in found.expiring_parts:
        say(part)


def _estimated(found: "Preview") -> str:
    if not found.images_pending:
        return "nothing is left to do"
    where = {
        "local": "in this process",
        "ray": "on a Ray of this machine",
        "cluster": "on a cluster like this machine",
    }[found.place]
    more = " and then the fit of what was embedded" if found.verb == "fit" else ""
    return (
        f"{found.seconds:.0f} s {where} ({found.cpus} CPUs): {found.startup_seconds:.0f} s to "
        f"start, {found.cpu_seconds:.0f} s of a CPU for the images{more}"
    )
