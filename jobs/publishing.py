"""What a fit does last: `model.json`, the summary, and a table for whoever looks."""

from patchlake.jobs.console import show_table
from patchlake.jobs.driving import Tally, require_success, summarise
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record.runs import Run
from patchlake.pipeline.storage.folder import Folder

# Of a group's facts, in one cell of the table; all are in model.json.
_SHOWN_FACTS = 4


def publish(
    job: Run,
    tally: Tally,
    manifest: models.Manifest,
    planned: Fragments,
    *,
    overwrite: bool,
) -> models.Manifest:
    """Write `model.json` and the summary; return the manifest.

    Raises:
        ConfigError: if another run has published meanwhile, and `overwrite` was not asked.
        FragmentsFailed: if a group is not published, or a fragment failed.
    """
    target = job.folder
    if manifest.groups:
        models.publish_manifest(target, manifest, overwrite=overwrite)
    digests = {group: record.digest for group, record in manifest.groups.items()}
    already_done = len(planned) - tally.fragments
    summary = summarise(job, tally, planned, already_done, groups=digests)
    failed = manifest.failed_groups
    if failed:
        summary = summary.model_copy(update={"exit_code": FragmentsFailed.exit_code})
    job.finish(summary)
    show_model(target, manifest)
    if failed:
        told = "; ".join(f"{group}: {reason}" for group, reason in failed.items())
        total = len(failed) + len(manifest.groups)
        raise FragmentsFailed(f"{len(failed)} of {total} groups are not published ({told})")
    target.remove(job.name("partials"), recursive=True)
    # What a worker that was killed has left of a file.
    target.sweep()
    require_success(summary)
    return manifest


def show_model(target: Folder, manifest: models.Manifest) -> None:
    """Print a line a group."""
    rows = [
        [
            group,
            str(record.images),
            str(sum(record.unusable_images.values())),
            f"{sum(file.bytes for file in record.files) / 2**20:.1f} MiB",
            record.digest[:12],
            ", ".join(_shown(*fact) for fact in list(record.facts.items())[:_SHOWN_FACTS]),
        ]
        for group, record in manifest.groups.items()
    ]
    header = ["group", "images", "unusable", "size", "model", "facts"]
    show_table(f"{manifest.method} on {manifest.backbone.name}: {target.root}", header, rows)


def _shown(name: str, fact: float | str) -> str:
    return f"{name} {fact}" if isinstance(fact, str) else f"{name} {fact:.6g}"
