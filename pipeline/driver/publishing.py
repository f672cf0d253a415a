"""What a fit does last: `model.json` and the summary."""

from collections.abc import Mapping

import pyarrow as pa

from patchlake.pipeline.driver.drive import Tally
from patchlake.pipeline.driver.summary import require_success, summarise
from patchlake.pipeline.driver.suspects import photos_of, write_suspects
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record.runs import Run


def publish(
    job: Run,
    tally: Tally,
    manifest: models.Manifest,
    planned: Fragments,
    suspects: Mapping[str, pa.Table],
    *,
    overwrite: bool,
) -> models.Manifest:
    """Write the list of suspects, `model.json` and the summary; return the manifest.

    Raises:
        ConfigError: if another run has published meanwhile, and `overwrite` was not asked.
        FragmentsFailed: if a group is not published, or a fragment failed.
    """
    target = job.folder
    if manifest.groups:
        # First: who finds the model finds the list, and the same command again would not write it.
        write_suspects(target, suspects, photos_of(job.record))
        models.publish_manifest(target, manifest, overwrite=overwrite)
    digests = {group: record.digest for group, record in manifest.groups.items()}
    already_done = len(planned) - tally.fragments
    summary = summarise(job, tally, planned, already_done, groups=digests)
    failed = manifest.failed_groups
    if failed:
        summary = summary.model_copy(update={"exit_code": FragmentsFailed.exit_code})
    job.finish(summary)
    if failed:
        reasons = "; ".join(f"{group}: {reason}" for group, reason in failed.items())
        total = len(failed) + len(manifest.groups)
        raise FragmentsFailed(
            f"{len(failed)} of {total} groups are not published ({reasons})", manifest
        )
    target.remove(job.name("partials"), recursive=True)
    # What a worker that was killed has left of a file.
    target.sweep()
    require_success(summary, manifest)
    return manifest
